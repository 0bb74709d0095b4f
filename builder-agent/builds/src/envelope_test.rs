use std::path::Path;

use members::settings::{Layer, Layers, Level};

use super::*;

/// A box whose builds have 2 processors and 1000 MiB, and at most 8 and 5000.
fn config() -> Config {
    config_with("")
}

fn config_with(limits: &str) -> Config {
    let text = "roster = \"/r\"\n[sandbox]\nvcpus = 2\nmemory-mib = 1000\n\
                [limits]\nmax-cpus = 8\nmax-memory-mib = 5000\nmax-jobs = 9\n";
    let text = format!("{text}{limits}\n");
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).expect("written");
    Config::load(Path::new(&path)).expect("a good configuration")
}

fn settings(config: &Config, said: &str) -> Effective {
    let layer: Layer = serde_json::from_str(said).expect("settings");
    let layers = Layers::default().with(Level::System, "", &config.settings);
    layers.with(Level::Ssh, "", &layer).resolve().effective()
}

fn envelope(own: &MemberLimits, said: &str) -> Result<(u8, u32, bool), String> {
    envelope_by(&config(), own, said)
}

fn envelope_by(config: &Config, own: &MemberLimits, said: &str) -> Result<(u8, u32, bool), String> {
    let settings = settings(config, said);
    let envelope = Envelope::of_build(config, &Most::of(config, own, &[], &settings), &settings)?;
    Ok((envelope.vcpus, envelope.memory_mib, envelope.is_of_box()))
}

#[test]
fn without_settings_and_limits_the_envelope_is_the_boxs() {
    assert_eq!(envelope(&MemberLimits::default(), "{}"), Ok((2, 1000, true)));
    let same = r#"{"default-cpu":2,"min-cpu":1,"default-mem-per-cpu":500,"max-mem":5000}"#;
    assert_eq!(envelope(&MemberLimits::default(), same), Ok((2, 1000, true)), "as if none were set");
}

#[test]
fn the_default_lies_between_the_least_and_the_most_and_is_then_the_members_own() {
    for (said, expected) in [
        (r#"{"default-cpu":4}"#, (4, 1000, false)),
        (r#"{"min-cpu":3}"#, (3, 1000, false)),
        (r#"{"default-cpu":4,"max-cpu":3}"#, (3, 1000, false)),
        (r#"{"default-cpu":200}"#, (8, 1000, false)),
        (r#"{"max-cpu":1}"#, (1, 1000, false)),
        (r#"{"default-mem-per-cpu":600}"#, (2, 1200, false)),
        (r#"{"default-cpu":4,"default-mem-per-cpu":600}"#, (4, 2400, false)),
        (r#"{"default-cpu":8,"default-mem-per-cpu":16777216}"#, (8, 5000, false)),
        (r#"{"default-mem-per-cpu":600,"max-mem":1100}"#, (2, 1100, false)),
        (r#"{"min-mem":3000}"#, (2, 3000, false)),
        (r#"{"max-mem":512}"#, (2, 512, false)),
    ] {
        assert_eq!(envelope(&MemberLimits::default(), said), Ok(expected), "{said}");
    }
}

#[test]
fn no_setting_raises_a_limit_and_a_least_value_above_one_is_refused() {
    let own = MemberLimits { max_cpus: Some(3), max_memory_mib: Some(2000), ..MemberLimits::default() };
    let much = r#"{"default-cpu":8,"default-mem-per-cpu":4000}"#;
    assert_eq!(envelope(&own, much), Ok((3, 2000, false)));
    for (said, why) in [
        (
            r#"{"min-cpu":4}"#,
            "`min-cpu` is 4, and a build may have 3 at most (your `max-cpus` in the roster)",
        ),
        (
            r#"{"min-mem":2001}"#,
            "`min-mem` is 2001, and a build may have 2000 at most (your `max-memory-mib` in the roster)",
        ),
        (
            r#"{"min-cpu":9}"#,
            "`min-cpu` is 9 by the ssh environment, and `max-cpu` is 8 by the configuration of the box (`limits.max-cpus`)",
        ),
    ] {
        assert_eq!(envelope(&own, said), Err(why.to_owned()));
    }
}

#[test]
fn more_memory_is_the_boxs_ladder_until_a_limit_of_the_member_bends_it() {
    let config = config();
    let ladder = |own: &MemberLimits, said: &str| {
        let settings = settings(&config, said);
        let most = Most::of(&config, own, &[], &settings);
        let first = Envelope::of_build(&config, &most, &settings).expect("an envelope");
        std::iter::successors(Some(first), |last| last.larger(&config, &most))
            .map(|envelope| (envelope.memory_mib, envelope.is_of_box()))
            .collect::<Vec<_>>()
    };
    let none = MemberLimits::default();
    assert_eq!(ladder(&none, "{}"), [(1000, true), (2000, true), (4000, true), (5000, true)]);
    assert_eq!(ladder(&none, r#"{"max-mem":3000}"#), [(1000, true), (2000, true), (3000, false)]);
    assert_eq!(ladder(&none, r#"{"min-mem":2000}"#), [(2000, false), (4000, false), (5000, false)]);
    let own = MemberLimits { max_memory_mib: Some(1000), ..none };
    assert_eq!(ladder(&own, "{}"), [(1000, true)]);
}

#[test]
fn no_build_is_larger_than_all_of_one_member_together_and_the_refusal_says_who_set_that() {
    let config = config_with("max-jobs-per-member = 2");
    let none = MemberLimits::default();
    let much = r#"{"default-cpu":8,"default-mem-per-cpu":4000}"#;
    assert_eq!(envelope_by(&config, &none, much), Ok((4, 2000, false)));
    assert_eq!(
        envelope_by(&config, &none, r#"{"min-mem":2001}"#),
        Err("`min-mem` is 2001, and a build may have 2000 at most (the box's `limits.max-jobs-per-member`)"
            .into())
    );
    let settings = settings(&config, "{}");
    // The end of the box's ladder is the same for all members.
    let most = Most::of(&config, &none, &[], &settings);
    let first = Envelope::of_build(&config, &most, &settings).expect("an envelope");
    let second = first.larger(&config, &most).expect("a larger one");
    assert_eq!((second.memory_mib, second.is_of_box(), second.larger(&config, &most)), (2000, true, None));
}

#[test]
fn the_limit_of_a_group_is_told_as_the_groups() {
    let config = config();
    let limits = MemberLimits { max_cpus: Some(3), ..MemberLimits::default() };
    let groups = [Arc::new(Group { name: "ci".into(), limits, settings: Layer::default() })];
    let settings = settings(&config, r#"{"min-cpu":4}"#);
    let most = Most::of(&config, &MemberLimits::default(), &groups, &settings);
    assert_eq!(
        Envelope::of_build(&config, &most, &settings),
        Err(
            "`min-cpu` is 4, and a build may have 3 at most (the `max-cpus` of the group 'ci' in the roster)"
                .into()
        )
    );
}

#[test]
fn who_keeps_a_build_from_more_memory_is_named() {
    let config = config();
    let named = |own: &MemberLimits, said: &str| {
        let settings = settings(&config, said);
        let most = Most::of(&config, own, &[], &settings);
        let first = Envelope::of_build(&config, &most, &settings).expect("an envelope");
        std::iter::successors(Some(first), |last| last.larger(&config, &most))
            .map(|envelope| (envelope.memory_mib, most.memory_set_by(&config, &envelope, &settings)))
            .collect::<Vec<_>>()
    };
    let (of_box, restarts) = (SetBy::Box("limits.max-memory-mib"), SetBy::Client("max-build-restarts"));
    let none = MemberLimits::default();
    let again = |sizes: &[u32]| sizes.iter().map(|size| (*size, restarts.clone())).collect::<Vec<_>>();
    let ladder = [again(&[1000, 2000, 4000]), vec![(5000, of_box.clone())]].concat();
    assert_eq!(named(&none, r#"{"max-build-restarts":2}"#), ladder);
    let least = [again(&[1500, 3000]), vec![(5000, of_box.clone())]].concat();
    assert_eq!(named(&none, r#"{"max-build-restarts":1,"min-mem":1500}"#), least);
    let most = [again(&[1000]), vec![(1500, SetBy::Client("max-mem"))]].concat();
    assert_eq!(named(&none, r#"{"max-build-restarts":1,"max-mem":1500}"#), most);
    let own = MemberLimits { max_memory_mib: Some(1500), ..none.clone() };
    let by_member = [again(&[1000]), vec![(1500, SetBy::Member("max-memory-mib"))]].concat();
    assert_eq!(named(&own, r#"{"max-build-restarts":1}"#), by_member);
    // A higher limit of the member's own would change nothing.
    let own = MemberLimits { max_memory_mib: Some(5000), ..none.clone() };
    assert_eq!(named(&own, r#"{"min-mem":5000}"#), [(5000, of_box)]);
    for (said, memory_mib, by) in [
        (r#""default-cpu":2"#, 1000, "max-build-restarts"),
        (r#""min-mem":500"#, 1000, "max-build-restarts"),
        (r#""min-mem":1500"#, 1500, "min-mem"),
        (r#""default-mem-per-cpu":700"#, 1400, "default-mem-per-cpu"),
        (r#""default-mem-per-cpu":700,"min-mem":500"#, 1400, "default-mem-per-cpu"),
        (r#""default-mem-per-cpu":700,"min-mem":1500"#, 1500, "min-mem"),
    ] {
        let first = named(&none, &format!(r#"{{"max-build-restarts":0,{said}}}"#)).swap_remove(0);
        assert_eq!(first, (memory_mib, SetBy::Client(by)), "{said}");
    }
}

#[test]
fn a_random_order_of_directories_makes_an_envelope_of_the_members_own_also_with_more_memory() {
    let (config, own) = (config(), MemberLimits::default());
    let settings = settings(&config, r#"{"inject-fs-randomness":true}"#);
    let most = Most::of(&config, &own, &[], &settings);
    let random = Envelope::of_build(&config, &most, &settings).expect("an envelope");
    let whole = Envelope::of_box(&config);
    assert_eq!(random, Envelope { random_order: true, of_box: false, ..whole });
    assert!(!random.is_of_box() && !random.is_served_by_box() && whole.is_served_by_box());
    let larger = random.larger(&config, &most).expect("more memory");
    assert!(larger.random_order && !larger.is_of_box());
}
