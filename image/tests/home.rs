//! The root file system of homes as `tests/scripts/build --image` made it, started in the way of PID 1: mounted read-only
//! under a tmpfs, with a member added. A chroot stands for the machine.
//!
//! Without the image, or without root, these tests say so and do nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounts the image and adds the member alice, whose shell is $shell; then runs a script in it as root. In a mount namespace of
/// its own, so nothing is left. $1: the image, $2: an empty folder, $3: the script.
const PID_1: &str = r#"
set -eu
cd "$2"
mount --make-rprivate /
mount -t tmpfs above "$2" && cd "$2"
mkdir below upper work root
mount -t erofs -o ro,loop "$1" below
mount -t overlay -o lowerdir=below,upperdir=upper,workdir=work root root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t tmpfs -o mode=0755 run root/run
mkdir -p -m 0755 root/run/home root/run/sshd
echo localhost > root/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n' > root/etc/hosts
: > root/etc/resolv.conf
echo 'alice:*:1000:100:Alice:/home/alice:/bin/bash' >> root/etc/passwd
mkdir -m 0700 root/home/alice && chown 1000:100 root/home/alice
exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=xterm chroot root /bin/bash -euc "$3"
"#;

/// Makes the keys of sshd and alice; then `box alice@home COMMAND` is what the member types. As in a home, sshd has one
/// socket as its standard input and output; `ssh` gets the other end of it.
const SSHD: &str = r#"
ssh-keygen -q -t ed25519 -N '' -f /run/home/ssh_host_key
ssh-keygen -q -t ed25519 -N '' -f /run/key
cp /run/key.pub /run/home/authorized_keys
chmod 0644 /run/home/authorized_keys
cat > /run/connect <<'END'
import socket, subprocess
ours, theirs = socket.socketpair()
subprocess.Popen(["/usr/sbin/sshd", "-i", "-e"], stdin=theirs, stdout=theirs, stderr=open("/run/sshd.log", "a"))
socket.send_fds(socket.socket(fileno=1), [b"x"], [ours.fileno()])
END
cat > /run/config <<'END'
ProxyCommand python3 /run/connect
ProxyUseFdpass yes
BatchMode yes
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /run/known_hosts
END
box() {
    ssh -F /run/config -i ${key-/run/key} -o LogLevel=${level-ERROR} "$@" || { cat /run/sshd.log; return 1; }
}
"#;

fn image() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder in the target folder");
    let image = target.join("home/home.erofs");
    if !image.exists() {
        eprintln!("skipped: there is no {}; `tests/scripts/build --image` makes it", image.display());
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting {} needs root", image.display());
        return None;
    }
    Some(image)
}

/// What a script prints in a home. `None`: skipped, see [`image`].
fn home(script: &str) -> Option<String> {
    let image = image()?;
    let place = tempfile::tempdir_in("/tmp").expect("a folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", PID_1, "pid-1"]).arg(image).arg(place.path()).arg(script);
    let output = command.output().expect("unshare is part of util-linux");
    let [printed, complaints] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{script}\nended with {}:\n{printed}\n{complaints}", output.status);
    Some(printed)
}

/// The same, with sshd's keys made.
fn with_sshd(script: &str) -> Option<String> {
    home(&format!("{SSHD}{script}"))
}

#[test]
fn nobody_in_a_home_becomes_root() {
    let Some(found) = home(
        "find / -xdev -perm /6000; getcap -r / 2>/dev/null || true; cut -d: -f1,2 /etc/shadow; ls /usr/bin/sudo 2>&1 || true",
    ) else {
        return;
    };
    let (users, rest): (Vec<&str>, Vec<&str>) =
        found.lines().partition(|line| line.contains(':') && !line.contains(' '));
    assert!(
        users.contains(&"root:*") && users.iter().all(|user| user.ends_with(":*") || user.ends_with(":!*")),
        "{users:?}"
    );
    assert_eq!(rest, ["ls: cannot access '/usr/bin/sudo': No such file or directory"]);
}

#[test]
fn what_pid_1_writes_is_left_to_it_and_its_mount_points_are_there() {
    // The image itself, without what stands for PID 1.
    let Some(image) = image() else { return };
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let script = r#"
        mount -t erofs -o ro,loop "$1" "$2" && cd "$2"
        for path in proc dev sys run tmp nix/store nix/var/nix/{gcroots,profiles,temproots,db,daemon-socket} home root; do
            [ -d "$path" ] && [ ! -L "$path" ] || echo "no folder $path"
        done
        for path in home proc nix/store etc/skel var/log boot; do
            [ -z "$(ls -A "$path")" ] || echo "something is in $path"
        done
        for path in etc/{hostname,hosts,resolv.conf,machine-id,passwd-,ssh/ssh_host_*} usr/lib/systemd/systemd usr/sbin/init \
            usr/lib/modules usr/bin/gcc var/lib/dpkg/status; do
            [ ! -e "$path" ] || echo "there is $path"
        done
        find . -name __pycache__
        [ "$(stat -c %a tmp)" = 1777 ] || echo "not everybody may write to tmp"
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", script, "look"]).arg(image).arg(place.path());
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_programs_of_a_home_start() {
    let Some(printed) = home(
        r#"
        nix --version; git --version; zsh --version; fish --version; tmux -V; vim --version | head -n 1; nano --version | head -n 1
        mosh-server --version 2>&1 | head -n 1; rsync --version | head -n 1; rg --version | head -n 1; fd --version; direnv version
        curl --version | head -n 1; jq --version; htop --version; tree --version; ss --version; python3 --version
        TZ=Asia/Tokyo date -d @0 +%H"#,
    ) else {
        return;
    };
    for start in [
        "nix (Nix) 2.",
        "git version 2.",
        "zsh 5.",
        "fish, version 4.",
        "tmux 3.",
        "VIM - Vi IMproved 9",
        " GNU nano",
    ] {
        assert!(printed.lines().any(|line| line.starts_with(start)), "{start}: {printed}");
    }
    assert_eq!(printed.lines().last(), Some("09"), "{printed}");
}

#[test]
fn manual_pages_are_there_in_english_and_for_what_nix_installs() {
    let Some(printed) = home(
        r#"
        mkdir -p /home/alice/.nix-profile/{bin,share/man/man1}
        echo '.TH HELLO 1' > /home/alice/.nix-profile/share/man/man1/hello.1
        export HOME=/home/alice
        . /etc/profile
        man -w git-clone; man -w 5 nix.conf; man -w bash; man -w 7 signal; man -w hello
        man git-clone | col -b | grep -c 'Clone a repository into a new directory'
        ls -d /usr/share/man/de /usr/share/locale/de 2>&1 | wc -l"#,
    ) else {
        return;
    };
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].ends_with("/man1/git-clone.1.gz") && lines[4].ends_with("/hello.1"), "{printed}");
    assert_eq!(lines[5..], ["1", "2"], "{printed}");
}

#[test]
fn the_terminals_of_today_are_known() {
    let Some(printed) = home(
        r#"for term in xterm-256color tmux-256color screen-256color alacritty foot wezterm xterm-kitty xterm-ghostty rxvt-unicode-256color linux; do
            infocmp $term >/dev/null || echo "not $term"
        done"#,
    ) else {
        return;
    };
    assert_eq!(printed, "");
}

#[test]
fn sshd_takes_its_configuration_and_the_members_key_alone() {
    let Some(printed) = with_sshd(
        r#"
        sshd -t
        box alice@home 'id -un; echo $LANG; pwd; ls -A; nix --version'
        echo "root: $(box root@home id 2>&1 | grep -c 'Permission denied')"
        ssh-keygen -q -t ed25519 -N '' -f /run/other
        echo "other: $(key=/run/other box alice@home id 2>&1 | grep -c 'Permission denied')"
        echo get /etc/os-release /run/got | sftp -q -F /run/config -i /run/key -b - alice@home >/dev/null
        cmp /etc/os-release /run/got && echo copied
        box -tt alice@home tty | grep -c /dev/pts/"#,
    ) else {
        return;
    };
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..3], ["alice", "C.UTF-8", "/home/alice"], "{printed}");
    assert!(lines[3].starts_with("nix (Nix) 2."), "{printed}");
    assert_eq!(lines[4..], ["root: 1", "other: 1", "copied", "1"], "{printed}");
}

#[test]
fn every_shell_finds_what_nix_installed_also_for_a_single_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = r#"
        sed -i 's#^\(alice:.*:\).*#\1/bin/SHELL#' /etc/passwd
        bin=/home/alice/.nix-profile/bin
        mkdir -p $bin
        printf '#!/bin/sh\necho "hello of the member"\n' > $bin/hello
        cp $bin/hello $bin/jq
        chmod +x $bin/*
        chown -R 1000:100 /home/alice
        box alice@home 'hello; jq; nix --version >/dev/null; env' > /run/single
        box alice@home "SHELL -lc 'hello; jq; env'" > /run/login
        box -tt alice@home "SHELL -ic 'env'" > /run/interactive
        box alice@home 'SHELL -lc "SHELL -lc env"' > /run/nested
        grep -c 'hello of the member' /run/single
        grep -c 'hello of the member' /run/login
        for file in single login interactive nested; do
            sed -n 's/^PATH=//p' /run/$file
            grep -cE '^(XDG_DATA_DIRS=/home/alice/.nix-profile/share:.*:/usr/share|LANG=C.UTF-8|NIX_SSL_CERT_FILE=/etc/ssl/.*)' /run/$file
        done"#;
        let Some(printed) = with_sshd(&script.replace("SHELL", shell)) else { return };
        let printed = printed.replace('\r', "");
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines[..2], ["2", "2"], "{shell}: {printed}");
        for pair in lines[2..].chunks(2) {
            let path: Vec<&str> = pair[0].split(':').collect();
            let ours = ["/home/alice/.nix-profile/bin", "/home/alice/.local/state/nix/profiles/profile/bin"];
            assert_eq!(path[..2], ours, "{shell}: {printed}");
            assert!(
                ["/usr/local/bin", "/usr/bin", "/bin"].iter().all(|dir| path.contains(dir)),
                "{shell}: {printed}"
            );
            let twice = path.iter().find(|dir| path.iter().filter(|other| other == dir).count() > 1);
            assert_eq!(twice, None, "{shell}: {printed}");
            assert_eq!(pair[1], "3", "{shell}: {printed}");
        }
        assert_eq!(lines.len(), 2 + 4 * 2, "{shell}: {printed}");
    }
}

#[test]
fn an_interactive_shell_starts_in_an_empty_home_without_a_question_or_a_complaint() {
    for shell in ["bash", "zsh", "fish"] {
        // A terminal, as a person has it: `script` types the commands.
        let script = r#"
        cd /home/alice
        printf 'echo READY | tr ADERY adery\nexit\n' | timeout 60 setpriv --reuid 1000 --regid 100 --clear-groups \
            env HOME=/home/alice USER=alice SHELL=/bin/@ TERM=xterm-256color script -qec '@ -il' /dev/null"#;
        let Some(printed) = home(&script.replace('@', shell)) else { return };
        assert!(printed.contains("ready"), "{shell}: {printed}");
        let lower = printed.to_lowercase();
        for complaint in ["newuser", "not found", "error", "warning", "no such", "cannot", "denied"] {
            assert!(!lower.contains(complaint), "{shell}, {complaint}: {printed}");
        }
    }
}

#[test]
fn editor_and_multiplexer_take_their_defaults_and_then_the_members() {
    let Some(printed) = home(
        r#"
        cd /home/alice
        member() {
            setpriv --reuid 1000 --regid 100 --clear-groups env HOME=/home/alice USER=alice SHELL=/bin/bash LANG=C.UTF-8 "$@"
        }
        settings() {
            member script -qec "vim -c 'redir! > out' -c 'silent set mouse? hidden? expandtab?' -c 'redir END' -c 'qa!' a.nix" /dev/null >/dev/null
            grep -v '^$' out | tr -s ' \n' ' '; echo
            member tmux new-session -d 'sleep 60'
            member tmux show -gv default-terminal; member tmux show -sv escape-time; member tmux kill-server
        }
        settings
        echo 'set nohidden' > .vimrc
        echo 'set -g default-terminal xterm-256color' > .tmux.conf
        settings"#,
    ) else {
        return;
    };
    let lines: Vec<&str> = printed.lines().map(str::trim).collect();
    assert_eq!(lines[..3], ["mouse= hidden expandtab", "tmux-256color", "10"], "{printed}");
    assert_eq!(lines[3..], ["mouse= nohidden noexpandtab", "xterm-256color", "10"], "{printed}");
}

#[test]
fn ports_and_sockets_are_forwarded_and_nobody_listens_for_others() {
    let Some(printed) = with_sshd(
        r#"
        ip link set lo up 2>/dev/null || true
        python3 -c '
import socket
s = socket.create_server(("127.0.0.1", 0))
open("/run/port", "w").write(str(s.getsockname()[1]))
while True:
    c, _ = s.accept()
    c.sendall(b"answer\n")
    c.close()
' &
        server=$!
        trap 'kill $server' EXIT
        while [ ! -s /run/port ]; do sleep 0.1; done
        for host in 127.0.0.1 localhost; do box -W $host:$(cat /run/port) alice@home </dev/null; done
        box -o ExitOnForwardFailure=yes -R 127.0.0.1:0:127.0.0.1:1 alice@home echo listens
        # That of Nix is one, in both directions.
        box -o ExitOnForwardFailure=yes -R /tmp/there:/tmp/here alice@home 'test -S /tmp/there && echo socket'
        # Whatever the client asks for, loopback it is.
        box -o ExitOnForwardFailure=yes -R 0.0.0.0:7777:127.0.0.1:1 alice@home 'ss -Hltn sport = :7777 | grep -c 127.0.0.1; ss -Hltn sport = :7777 | grep -c 0.0.0.0:7777 || true'"#,
    ) else {
        return;
    };
    let lines: Vec<&str> = printed.lines().collect();
    let mut expected = vec!["answer"; 2];
    expected.extend(["listens", "socket", "1", "0"]);
    assert_eq!(lines, expected, "{printed}");
}

#[test]
fn nix_is_stock_nix_with_the_daemon_as_its_store() {
    let Some(printed) = home(
        r#"
        nix() { command nix --extra-experimental-features nix-command "$@"; }
        nix config show store; nix config show substituters; nix config show trusted-public-keys
        command nix config show 2>&1 | head -n 1
        nix-instantiate --store dummy:// --eval -E '6 * 7'
        printf '[safe]\n\tdirectory = /nixpkgs.git\n' > /etc/gitconfig-repositories
        git config --system --includes safe.directory"#,
    ) else {
        return;
    };
    assert_eq!(
        printed.lines().collect::<Vec<_>>(),
        [
            "daemon",
            "https://cache.nixos.org/",
            "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
            "error: experimental Nix feature 'nix-command' is disabled; add '--extra-experimental-features nix-command' to enable it",
            "42",
            "/nixpkgs.git"
        ]
    );
}
