//! The messages for users who run any command but `nix-daemon --stdio`, or who have the wrong key.

use e2e::clients::{Nix, Stock};
use e2e::keys::Key;
use e2e::process;

use crate::Alice;

const WORKS: &str = "this box answers `nix-daemon --stdio` (for stores and builders named ssh-ng://), \
                     `nix-store --serve --write` (for those named ssh://), \
                     `status`, `log`, `builds`, `who`, `whoami`, `usage`, `settings`, `ticket`, `home`, `keys`, `client-config`, `signing-key`, `shell`, `help`";
/// The exit status of a shell for an unknown command.
const NOT_FOUND: Option<i32> = Some(127);

pub fn a_login_without_a_command_is_told_what_works(stock: Stock) {
    let alice = Alice::with(stock);
    let said = process::run(&mut alice.nix.ssh());
    assert_eq!(said.stderr, format!("no command was sent; {WORKS}\n"), "{said}");
    assert_eq!(said.stdout, "");
    assert_eq!(said.status, NOT_FOUND, "{said}");
}

pub fn any_other_command_is_refused_in_one_line(stock: Stock) {
    let alice = Alice::with(stock);
    for command in ["ls -l /", "sh", "nix-daemon", "nix-daemon --stdio; id", "$(id)"] {
        let said = process::run(alice.nix.ssh().arg(command));
        assert_eq!(said.stderr.lines().count(), 1, "{said}");
        assert!(said.stderr.contains(WORKS), "{said}");
        assert_eq!(said.stdout, "", "{said}");
        assert_eq!(said.status, NOT_FOUND, "{said}");
    }
}

pub fn a_key_that_is_not_in_the_roster_gets_nothing(stock: Stock) {
    let alice = Alice::with(stock);
    let stranger = Key::new("stranger");
    let nix = Nix::over(stock, &alice.agent, &stranger);
    let said =
        process::run(&mut nix.closure_at_box("/nix/store/00000000000000000000000000000000-x")).failed();
    assert!(said.stderr.contains("Permission denied (publickey)"), "{said}");
    alice.agent.wait_for("login denied: key not in the roster");
    for kind in ["worker", "serve"] {
        assert_eq!(alice.agent.count(&format!("{kind} session started")), 0);
    }
}
