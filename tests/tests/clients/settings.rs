//! Settings that stock OpenSSH sends with `SetEnv`, from the configuration that stock Nix's ssh reads.

use e2e::clients::{Nix, Stock};
use e2e::drv::Drv;
use e2e::process::run;

use crate::Alice;

/// A build without an end of its own.
fn endless() -> Drv {
    Drv::new("endless", "echo running; while true; do sleep 0.1; done")
}

pub fn variables_of_ssh_decide_about_the_builds_of_their_client(stock: Stock) {
    let mut alice = Alice::with(stock);
    // One of each service, as somebody has who comes from the other one.
    alice.nix.set_env("LANG=C NIXBUILDNET_TIMEOUT=2 BARN_REUSE_BUILD_FAILURES=false");
    let said = run(&mut alice.nix.build(&endless().expr())).failed();
    said.says(&["timed out after 2 seconds"]);
    let broken = Drv::new("broken", "exit 7").expr();
    for _ in 0..2 {
        run(&mut alice.nix.build(&broken)).failed().says(&["failed with exit code 7"]);
    }
    assert_eq!(alice.agent.count("build started"), 3, "the failure was not reused");
    let told = run(alice.nix.ssh().arg("settings --explain timeout")).ok();
    assert!(told.stdout.starts_with("timeout is 2 seconds, by the ssh environment\n"), "{told}");
    // Another machine of the same member has said nothing.
    run(&mut alice.other_machine().build(&broken)).failed().says(&["this failure is from an earlier build"]);
}

pub fn a_variable_that_is_no_setting_is_refused_by_name_before_anything_is_built(stock: Stock) {
    let mut alice = Alice::with(stock);
    let build = |nix: &Nix| run(&mut nix.build(&Drv::new("plain", "echo x > $out").expr()));
    alice.nix.set_env("BARN_KEEP_GOIN=1");
    build(&alice.nix).failed().says(&[
        "the variable `BARN_KEEP_GOIN` is refused: there is no setting `keep-goin`; did you mean `keep-going`?",
    ]);
    alice.nix.set_env("NIXBUILDNET_MAX_CPU_HOURS_PER_MONTH=5");
    build(&alice.nix).failed().says(&["the setting `max-cpu-hours-per-month` has no effect on this box"]);
    assert_eq!(alice.agent.count("build started"), 0);
    alice.nix.set_env("BARN_KEEP_GOING=1");
    build(&alice.nix).ok();
}

pub fn a_derivation_can_bring_its_own_settings(stock: Stock) {
    let mut alice = Alice::with(stock);
    alice.nix.set_env("NIXBUILDNET_SETTINGS_FROM_DRV_ENV=true");
    let impatient = endless().attribute("NIXBUILDNET_TIMEOUT", "2");
    run(&mut alice.nix.build(&impatient.expr())).failed().says(&["timed out after 2 seconds"]);
    let wrong = endless().attribute("BARN_TIMEOUT", "\"soon\"");
    run(&mut alice.nix.build(&wrong.expr())).failed().says(&["the variable `BARN_TIMEOUT` is refused"]);
    assert_eq!(alice.agent.count("build started"), 1);
}
