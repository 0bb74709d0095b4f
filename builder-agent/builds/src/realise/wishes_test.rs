use std::collections::{BTreeMap, BTreeSet};

use members::Bearer;
use members::settings::Layer;
use nix_derivation::StorePath;
use tickets::{New, Scope, Terms, Tickets};

use super::*;
use crate::structured::Attributes;

fn recipe(env: &[(&str, &[u8])], structured: Option<&str>) -> Recipe {
    Recipe {
        drv_path: StorePath::from_parts([1; 20], "x.drv").expect("a path"),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: Vec::new(),
        env: env.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect(),
        structured: structured.map(|json| Arc::new(Attributes::parse(json.into()).expect("JSON"))),
        outputs: BTreeMap::new(),
        inputs: BTreeSet::new(),
        input_derivations: BTreeMap::new(),
        verified_paths: false,
        drv_hash: None,
        weight: 0,
    }
}

fn wishes(member: &str) -> Wishes {
    let layer: Layer = serde_json::from_str(member).expect("settings");
    Wishes::of(Layers::default().with(Level::Member, "", &layer))
}

const ON: &str = r#"{"settings-from-drv-env":true,"timeout":600}"#;

#[test]
fn variables_of_a_derivation_are_settings_only_where_the_session_says_so() {
    let plain = recipe(&[("BARN_TIMEOUT", b"5"), ("NIXBUILDNET_KEEP_BUILDS_RUNNING", b"1")], None);
    let structured = recipe(&[], Some(r#"{"BARN_TIMEOUT":5,"BARN_KEEP_BUILDS_RUNNING":true}"#));
    for recipe in [plain, structured] {
        let on = wishes(ON).for_build(&recipe).expect("settings");
        assert_eq!((on.timeout, on.keep_builds_running), (Some(5), true));
        let off = wishes(r#"{"timeout":600}"#).for_build(&recipe).expect("settings");
        assert_eq!((off.timeout, off.keep_builds_running), (Some(600), false));
    }
}

#[test]
fn a_wrong_variable_of_a_derivation_refuses_its_build_by_name() {
    for (variable, value, why) in [
        ("BARN_TIMEOUT", &b"soon"[..], "the setting `timeout` must be"),
        ("BARN_TIMEOUT", b"\xff", "not text"),
        ("BARN_KEEP_GOING", b"1", "the setting `keep-going` cannot be set by the derivation"),
        ("NIXBUILDNET_CACHE_BUILD_FAILURES", b"4", "has no effect on this box"),
    ] {
        let recipe = recipe(&[(variable, value)], None);
        let failure = wishes(ON).for_build(&recipe).expect_err(variable);
        let said = &failure.message;
        assert!(said.contains(&format!("`{variable}` is refused")) && said.contains(why), "{said}");
        assert!(wishes("{}").for_build(&recipe).is_ok(), "an ordinary variable where it is switched off");
    }
}

#[test]
fn whether_a_path_is_fetched_follows_the_names_of_all_levels() {
    let wishes = wishes(r#"{"never-substitute":["*-secret","b"],"always-substitute":["a*"]}"#);
    let alice = Member::named("alice");
    let may = |name, asked| wishes.may_fetch(&alice, name, asked);
    assert!(!may("my-secret", true) && !may("b", true) && may("bc", true));
    assert!(may("abc", false) && !may("bc", false) && !may("a-secret", false));
    let holder = |scope| {
        let (expires, tickets) = (u64::MAX, Tickets::in_memory());
        let (uses, max_build_seconds, max_upload_bytes, max_jobs, bind_key) = (None, None, None, None, None);
        let terms = Terms { expires, uses, max_build_seconds, max_upload_bytes, max_jobs, scope, bind_key };
        let new = New { name: "t".into(), maker: "alice".into(), terms, revealable: false, most: 9 };
        let (ticket, _) = tickets.make(new).expect("made");
        let bearer = Bearer { ticket, maker: Arc::new(Member::named("alice")) };
        Member { ticket: Some(bearer), ..Member::named("friend") }
    };
    assert!(wishes.may_fetch(&holder(Scope::Build), "abc", false));
    assert!(!wishes.may_fetch(&holder(Scope::Read), "abc", true), "a ticket for reading");
}

#[test]
fn a_session_without_builds_is_told_which_level_forbids_them() {
    assert!(wishes("{}").refusal(&recipe(&[], None)).is_none());
    let failure = wishes(r#"{"allow-builds":false}"#).refusal(&recipe(&[], None)).expect("refused");
    assert!(
        failure.message.contains("`allow-builds` is `false` in the member's entry in the roster"),
        "{}",
        failure.message
    );
}
