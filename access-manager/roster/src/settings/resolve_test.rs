use proptest::prelude::*;

use super::*;

fn layer(json: &str) -> Layer {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// Each as `level` or `group NAME`, and its settings.
fn layers(said: &[(&str, &str)]) -> Layers {
    said.iter().fold(Layers::default(), |layers, (who, json)| {
        let (level, by) = who.split_once(' ').unwrap_or((who, ""));
        let level = Level::ALL.into_iter().find(|known| known.name() == level).expect("a level");
        layers.with(level, by, &layer(json))
    })
}

fn why(resolved: &Resolved, id: Id) -> Vec<Option<String>> {
    resolved.get(id).votes.iter().map(Vote::why_not).collect()
}

#[test]
fn without_any_level_the_defaults_of_the_table_hold() {
    let effective = Layers::default().resolve().effective();
    assert!(effective.allow_builds && effective.allow_override && effective.allow_shell);
    assert!(effective.keep_going && effective.reuse_build_failures && effective.settings_from_ssh_env);
    assert!(!effective.keep_builds_running && !effective.settings_from_drv_env);
    assert!(!effective.inject_fs_randomness && effective.reuse_build_timeouts.is_none());
    assert_eq!((effective.timeout, effective.max_silent_time), (None, None));
}

#[test]
fn the_holder_of_a_ticket_has_no_caches_of_their_own_by_any_level() {
    let caches = format!(
        r#"{{"substituters":["https://cache.example.org"],"trusted-public-keys":["k-1:{}="],"timeout":9}}"#,
        "A".repeat(43)
    );
    let layers = layers(&["group ci", "member", "key", "ssh"].map(|level| (level, caches.as_str())));
    let (member, holder) = (layers.clone().resolve(), layers.of_holder(true).resolve());
    let told = |resolved: &Resolved| {
        let values = resolved.effective();
        (values.substituters.len(), values.trusted_public_keys.len(), values.timeout)
    };
    assert_eq!((told(&member), told(&holder)), ((1, 1, Some(9)), (0, 0, Some(9))));
    assert_eq!((member.in_vain(Level::Ssh).count(), holder.in_vain(Level::Ssh).count()), (0, 2));
    let whys = why(&holder, Id::Substituters);
    assert!(whys.len() == 4 && whys.iter().flatten().all(|why| why.contains("has a ticket")), "{whys:?}");
}

#[test]
fn later_levels_override_earlier_ones() {
    let resolved = layers(&[
        ("system", r#"{"keep-going":true}"#),
        ("group ci", r#"{"keep-going":false}"#),
        ("member", r#"{"keep-going":true}"#),
        ("ssh", r#"{"keep-going":false}"#),
    ])
    .resolve();
    let settled = resolved.get(Id::KeepGoing);
    assert_eq!((&settled.value, settled.level), (&Value::Flag(false), Level::Ssh));
    let overridden = Some("overridden by the ssh environment".to_owned());
    assert_eq!(why(&resolved, Id::KeepGoing), [overridden.clone(), overridden.clone(), overridden, None]);
}

#[test]
fn of_two_groups_false_counts_in_any_order() {
    for (one, other) in [("true", "false"), ("false", "true")] {
        let (one, other) = (format!("{{\"keep-going\":{one}}}"), format!("{{\"keep-going\":{other}}}"));
        let said = [("group a", one.as_str()), ("group b", other.as_str())];
        assert!(!layers(&said).resolve().effective().keep_going);
    }
}

#[test]
fn a_time_is_the_smallest_of_all_and_zero_sets_none() {
    let said = |ssh: &str| {
        layers(&[("system", r#"{"timeout":600}"#), ("member", r#"{"timeout":60}"#), ("ssh", ssh)]).resolve()
    };
    let resolved = said(r#"{"timeout":600}"#);
    assert_eq!((resolved.effective().timeout, resolved.get(Id::Timeout).level), (Some(60), Level::Member));
    assert_eq!(
        why(&resolved, Id::Timeout)[2].as_deref(),
        Some("the smaller value of the member's entry in the roster counts")
    );
    assert_eq!(said(r#"{"timeout":0}"#).effective().timeout, Some(60));
    assert_eq!(said(r#"{"timeout":5}"#).effective().timeout, Some(5));
}

#[test]
fn the_last_priority_counts_and_of_two_groups_the_smaller_one() {
    let said = |said: &[(&str, &str)]| layers(said).resolve().effective().priority;
    assert_eq!(said(&[]), 0);
    assert_eq!(said(&[("member", r#"{"priority":5}"#), ("ssh", r#"{"priority":-3}"#)]), -3);
    for (one, other) in [("5", "-1"), ("-1", "5")] {
        let (one, other) = (format!("{{\"priority\":{one}}}"), format!("{{\"priority\":{other}}}"));
        assert_eq!(said(&[("group a", &one), ("group b", &other)]), -1);
    }
}

#[test]
fn the_last_amount_counts_and_zero_takes_back_what_earlier_levels_say() {
    let said = |said: &[(&str, &str)]| layers(said).resolve().effective().default_cpu;
    let member = ("member", r#"{"default-cpu":8}"#);
    assert_eq!(said(&[("system", r#"{"default-cpu":2}"#), member]), Some(8));
    assert_eq!(said(&[member, ("derivation", r#"{"default-cpu":4}"#)]), Some(8), "it is switched off");
    assert_eq!(said(&[member, ("ssh", r#"{"default-cpu":0}"#)]), None);
    assert_eq!(said(&[("group a", r#"{"default-cpu":4}"#), ("group b", r#"{"default-cpu":3}"#)]), Some(3));
    let restarts = |said: &[(&str, &str)]| layers(said).resolve().effective().max_build_restarts;
    assert_eq!(restarts(&[]), 2);
    assert_eq!(restarts(&[("member", r#"{"max-build-restarts":0}"#)]), 0);
    assert_eq!(
        restarts(&[("group a", r#"{"max-build-restarts":0}"#), ("ssh", r#"{"max-build-restarts":9}"#)]),
        9
    );
}

#[test]
fn a_least_value_above_the_largest_is_told_with_both_values_and_levels() {
    let said = |said: &[(&str, &str)]| layers(said).resolve().effective().conflict;
    let system = ("system", r#"{"max-cpu":4,"max-mem":2048}"#);
    assert_eq!(said(&[system, ("ssh", r#"{"min-cpu":4,"min-mem":2048}"#)]), None);
    assert_eq!(said(&[("ssh", r#"{"min-cpu":200}"#)]), None);
    assert_eq!(
        said(&[system, ("ssh", r#"{"min-cpu":5}"#)]).expect("a conflict"),
        "`min-cpu` is 5 by the ssh environment, and `max-cpu` is 4 by the configuration of the box (`limits.max-cpus`)"
    );
    assert_eq!(
        said(&[system, ("group ci", r#"{"min-mem":1024}"#), ("member", r#"{"max-mem":512}"#)])
            .expect("a conflict"),
        "`min-mem` is 1024 by a group, and `max-mem` is 512 by the member's entry in the roster"
    );
}

#[test]
fn lists_are_put_together() {
    let effective = layers(&[
        ("system", r#"{"never-substitute":["a"]}"#),
        ("group ci", r#"{"never-substitute":["c","a"]}"#),
        ("member", r#"{"never-substitute":[]}"#),
        ("ssh", r#"{"never-substitute":["b"]}"#),
    ]);
    assert_eq!(effective.resolve().effective().never_substitute, ["a", "b", "c"]);
}

#[test]
fn a_level_that_allows_no_override_locks_all_later_ones_and_not_itself() {
    let resolved = layers(&[
        ("system", r#"{"keep-going":true,"timeout":600}"#),
        ("group ci", r#"{"keep-going":false,"allow-override":false}"#),
        ("member", r#"{"keep-going":true,"allow-override":true}"#),
        ("ssh", r#"{"timeout":5,"never-substitute":["x"]}"#),
    ])
    .resolve();
    let effective = resolved.effective();
    assert!(!effective.keep_going && !effective.allow_override);
    assert_eq!(effective.timeout, Some(600));
    assert!(effective.never_substitute.is_empty());
    let locked = Some("locked: `allow-override` is `false` in a group".to_owned());
    assert_eq!(why(&resolved, Id::KeepGoing)[2], locked);
    let in_vain: Vec<&str> = resolved.in_vain(Level::Ssh).map(|(setting, _)| setting.name).collect();
    assert_eq!(in_vain, ["never-substitute", "timeout"]);
}

#[test]
fn variables_count_only_where_they_are_switched_on() {
    let derivation = ("derivation", r#"{"timeout":5}"#);
    assert_eq!(layers(&[derivation]).resolve().effective().timeout, None);
    for level in ["member", "ssh"] {
        let on = layers(&[(level, r#"{"settings-from-drv-env":true}"#), derivation]);
        assert_eq!(on.resolve().effective().timeout, Some(5), "{level}");
    }
    let off = layers(&[
        ("member", r#"{"settings-from-ssh-env":false}"#),
        ("ssh", r#"{"settings-from-drv-env":true,"timeout":7}"#),
        derivation,
    ])
    .resolve();
    assert_eq!(off.effective().timeout, None);
    assert_eq!(why(&off, Id::Timeout)[0].as_deref(), Some("`settings-from-ssh-env` is `false`"));
    assert_eq!(why(&off, Id::Timeout)[1].as_deref(), Some("`settings-from-drv-env` is `false`"));
}

/// Any value of each setting that the level may set.
fn any_layer(level: Level) -> impl Strategy<Value = Layer> {
    let values = proptest::collection::vec((any::<bool>(), any::<bool>(), 0..4i64), SETTINGS.len());
    values.prop_map(move |values| {
        let mut layer = Layer::default();
        for (setting, (says, flag, number)) in SETTINGS.iter().zip(values) {
            let value = match setting.kind {
                Kind::Flag { .. } => Value::Flag(flag),
                Kind::Most { smallest, .. } => Value::Number(if number == 0 { 0 } else { smallest + number }),
                Kind::Amount { smallest, .. } => {
                    Value::Number(if number == 0 { 0 } else { smallest + number })
                }
                Kind::Count { .. } => Value::Number(number),
                Kind::Rank { .. } => Value::Number(number - 2),
                Kind::Source if number == 0 => Value::Text(String::new()),
                Kind::Source => Value::Text(format!("https://s/{number}")),
                Kind::Globs | Kind::Tags => Value::Words((0..number).map(|n| format!("w{n}")).collect()),
                Kind::Caches => Value::Words((0..number).map(|n| format!("https://c{n}")).collect()),
                Kind::CacheKeys => {
                    Value::Words((0..number).map(|n| format!("k{n}:{}=", "A".repeat(43))).collect())
                }
            };
            if says && setting.may_be_on(level) {
                layer.set(setting, value).expect("a value of its kind");
            }
        }
        layer
    })
}

fn any_layers() -> impl Strategy<Value = Vec<Layer>> {
    Level::ALL.into_iter().map(any_layer).collect::<Vec<_>>()
}

fn of(said: &[Layer]) -> Layers {
    Level::ALL
        .into_iter()
        .zip(said)
        .fold(Layers::default(), |layers, (level, layer)| layers.with(level, "", layer))
}

proptest! {
    /// No later level takes away what an earlier one narrows: times only shrink, and lists only grow.
    #[test]
    fn a_later_level_can_only_narrow_times(said in any_layers()) {
        for levels in 1..=said.len() {
            let (fewer, more) = (of(&said[..levels - 1]).resolve(), of(&said[..levels]).resolve());
            let (fewer, more) = (fewer.effective(), more.effective());
            for (before, now) in [
                (fewer.timeout, more.timeout),
                (fewer.max_silent_time, more.max_silent_time),
                (fewer.max_cpu, more.max_cpu),
                (fewer.max_mem, more.max_mem),
            ] {
                prop_assert!(before.is_none_or(|before| now.is_some_and(|now| now <= before)));
            }
            prop_assert!(fewer.never_substitute.iter().all(|word| more.never_substitute.contains(word)));
        }
    }

    /// Behind a lock nothing changes, whatever is said there.
    #[test]
    fn behind_a_lock_nothing_changes(said in any_layers(), at in 0..4usize) {
        let mut said = said;
        let lock = &SETTINGS[Id::AllowOverride as usize];
        said[at].set(lock, Value::Flag(false)).expect("a flag");
        prop_assert_eq!(of(&said).resolve().effective(), of(&said[..=at]).resolve().effective());
    }

    /// The value is explained by the votes that count, and every other vote has a reason.
    #[test]
    fn every_value_is_explained(said in any_layers()) {
        for settled in of(&said).resolve().iter() {
            for vote in &settled.votes {
                prop_assert_eq!(vote.why_not().is_none(), vote.verdict == Verdict::Counts);
                if vote.verdict == Verdict::Counts && !matches!(settled.value, Value::Words(_)) {
                    prop_assert_eq!(&vote.value, &settled.value);
                }
            }
        }
    }
}
