//! The jail is complete or refused: each test takes a step away from a process, as a host would.

use std::io::Read;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::*;

fn missing(step: Step) -> Report {
    Report { active: Vec::new(), missing: vec![Missing { step, why: "not here".into() }] }
}

#[test]
fn a_step_that_is_missing_refuses_the_vm_unless_it_is_named() {
    for step in Step::ALL {
        let others: Vec<_> = Step::ALL.into_iter().filter(|other| *other != step).collect();
        for allowed in [&[][..], &others] {
            let text = missing(step).accept(allowed).unwrap_err().to_string();
            let name = step.name();
            assert!(text.contains(&format!("{name} (not here; hint: ")), "{text}");
            assert!(text.ends_with(&format!("`sandbox.allow-missing = [\"{name}\"]`")), "{text}");
        }
        assert_eq!(missing(step).accept(&[step]), Ok(()));
        assert_eq!(missing(step).accept(&Step::ALL), Ok(()));
        assert_eq!(step.name().parse(), Ok(step));
    }
    assert_eq!(Report::default().accept(&[]), Ok(()));
    assert!("seccomp".parse::<Step>().unwrap_err().contains("the steps are cgroup, namespaces"));
}

/// The result of entering the jail in a child process.
#[derive(Debug, Serialize, Deserialize)]
enum Entered {
    In(Report),
    Failed(String),
}

/// Enters the jail in a forked process, in which these system calls fail with EPERM.
fn enter_without(calls: &[libc::c_long], uid: Option<u32>) -> Entered {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let action = SeccompAction::Errno(libc::EPERM as u32);
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, action, arch).unwrap().try_into().unwrap();
    let (from, to) = std::io::pipe().unwrap();
    // SAFETY: under nextest a test has a process of its own, whose other thread only waits for this one: no lock is held
    // that the child would miss. The child ends with _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let mut report = Report::default();
        let entered = match seccompiler::apply_filter(&filter) {
            Err(e) => Entered::Failed(format!("the filter: {e}")),
            Ok(()) => match enter(uid, &mut report) {
                Ok(()) => Entered::In(report),
                Err(e) => Entered::Failed(e.to_string()),
            },
        };
        let _ = serde_json::to_writer(&to, &entered);
        // SAFETY: a number, and it does not return.
        unsafe { libc::_exit(0) };
    }
    drop(to);
    let mut text = String::new();
    let mut from = from;
    from.read_to_string(&mut text).unwrap();
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}, status {status}"))
}

fn own_uid() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(0x7000_0001)
}

fn steps(report: &Report) -> Vec<Step> {
    report.missing.iter().map(|missing| missing.step).collect()
}

#[test]
fn a_kernel_without_landlock_is_found_out() {
    let entered = enter_without(&[libc::SYS_landlock_create_ruleset], own_uid());
    let Entered::In(report) = entered else { panic!("{entered:?}") };
    assert!(steps(&report).contains(&Step::Landlock), "{report:?}");
    assert!(!report.active.iter().any(|step| step.contains("landlock")), "{report:?}");
    assert!(report.accept(&[]).is_err());
}

#[test]
fn a_host_without_namespaces_is_found_out() {
    let entered = enter_without(&[libc::SYS_unshare], own_uid());
    let Entered::In(report) = entered else { panic!("{entered:?}") };
    assert!(steps(&report).contains(&Step::Namespaces), "{report:?}");
    assert!(report.accept(&[Step::Landlock, Step::PidNamespace, Step::OwnUid]).is_err());
}

#[test]
fn a_process_that_was_not_put_into_a_pid_namespace_is_found_out() {
    let entered = enter_without(&[libc::SYS_swapoff], own_uid());
    let Entered::In(report) = entered else { panic!("{entered:?}") };
    assert!(steps(&report).contains(&Step::PidNamespace), "{report:?}");
}

#[test]
fn an_agent_that_has_no_uid_to_give_is_found_out() {
    let entered = enter_without(&[libc::SYS_swapoff], None);
    let Entered::In(report) = entered else { panic!("{entered:?}") };
    assert!(steps(&report).contains(&Step::OwnUid), "{report:?}");
}

/// Not even a step that may be missing can be taken by half.
#[test]
fn what_cannot_be_left_out_fails_in_words() {
    for (call, word) in [
        (libc::SYS_prlimit64, "core files"),
        (libc::SYS_pivot_root, "pivot into the empty root"),
        (libc::SYS_setresuid, "become an unprivileged user"),
        (libc::SYS_capset, "drop all capabilities"),
        (
            libc::SYS_prctl,
            if own_uid().is_some() { "empty the bounding set" } else { "drop ambient capabilities" },
        ),
    ] {
        if call == libc::SYS_setresuid && own_uid().is_none() {
            continue;
        }
        let entered = enter_without(&[call], own_uid());
        let Entered::Failed(why) = &entered else { panic!("{call}: {entered:?}") };
        assert!(why.contains(word), "{why}");
    }
}
