use super::*;
use crate::nix::Limits;
use crate::roster::evaluate;
use crate::source::Memory;
use crate::test_keys::*;

fn read(users: &str) -> Evaluated {
    let users = users.replace("$A", A).replace("$B", B).replace("$C", ECDSA_256).replace("$D", ECDSA_384);
    evaluate(Memory::with(&[("users.nix", &users)]), "users.nix", Limits::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

/// `severity: text` of all findings about the change.
fn told(before: Option<&str>, after: &str, require_vouch: bool) -> Vec<String> {
    let (before, after) = (before.map(read), read(after));
    let now = Day::parse("2027-06-15").expect("a day").end().0;
    let options = Options {
        root: Default::default(),
        file: "users.nix".into(),
        base: None,
        bounds: Vec::new(),
        require_vouch,
        now,
    };
    let told = findings(&after, before.as_ref(), &options);
    told.into_iter().map(|finding| format!("{}: {}", finding.severity.name(), finding.text)).collect()
}

const BEFORE: &str = "{ alice.keys = \"$A\"; bob = { keys = \"$B\"; expires = \"2027-06-14\"; }; }";

fn with(newcomers: &str) -> String {
    BEFORE.replace(" }; }", &format!(" }}; {newcomers} }}"))
}

#[test]
fn a_new_member_needs_a_voucher_who_was_a_member_before() {
    let new = "`carol` is new, and nobody who counts vouches for them: ";
    for (newcomers, reason) in [
        ("carol.keys = \"$C\";", "error: `carol` is new, and nobody vouches for them".to_owned()),
        (
            "carol = { keys = \"$C\"; vouchedBy = [ ]; };",
            "error: `carol` is new, and nobody vouches for them".into(),
        ),
        (
            "carol = { keys = \"$C\"; vouchedBy = \"zoe\"; };",
            format!("error: {new}`zoe` is not in this roster"),
        ),
        (
            "carol = { keys = \"$C\"; vouchedBy = \"bob\"; };",
            format!("error: {new}the access of `bob` has expired"),
        ),
        (
            "carol = { keys = \"$C\"; vouchedBy = \"dora\"; }; dora = { keys = \"$D\"; vouchedBy = \"alice\"; };",
            format!("error: {new}`dora` is new as well"),
        ),
        (
            "carol = { keys = \"$C\"; vouchedBy = [ \"bob\" \"zoe\" ]; };",
            format!("error: {new}the access of `bob` has expired; `zoe` is not in this roster"),
        ),
    ] {
        assert_eq!(told(Some(BEFORE), &with(newcomers), true).join("\n"), reason, "{newcomers}");
        let without = told(Some(BEFORE), &with(newcomers), false);
        assert!(without.iter().all(|told| told.starts_with("note: ")), "{without:?}");
    }
    for fine in [
        "carol = { keys = \"$C\"; vouchedBy = \"alice\"; };",
        "carol = { keys = \"$C\"; vouchedBy = [ \"alice\" \"bob\" ]; };",
    ] {
        assert_eq!(told(Some(BEFORE), &with(fine), true), [""; 0], "{fine}");
    }
}

#[test]
fn members_from_before_the_rule_need_nobody_and_keep_their_entry_when_the_voucher_leaves() {
    assert_eq!(told(Some(BEFORE), BEFORE, true), [""; 0]);
    let vouched = with("carol = { keys = \"$C\"; vouchedBy = \"zoe\"; };");
    assert_eq!(
        told(Some(&vouched), &vouched, true),
        ["note: `zoe` vouched for `carol`, and is not in this roster"]
    );
    // The first roster has nobody who could vouch.
    assert_eq!(told(None, &with("carol.keys = \"$C\";"), true), [""; 0]);
}

#[test]
fn a_circle_is_refused_where_a_newcomer_is_in_it() {
    let circle =
        "carol = { keys = \"$C\"; vouchedBy = \"dora\"; }; dora = { keys = \"$D\"; vouchedBy = \"carol\"; };";
    let said = "`carol` and `dora` vouch for each other in a circle: nobody from outside vouches for them";
    let told_of = |before: &str, rule| told(Some(before), &with(circle), rule);
    let new = told_of(BEFORE, true);
    assert!(new.contains(&format!("error: {said}")) && new.len() == 3, "{new:?}");
    assert_eq!(told_of(&with(circle), true), [format!("warning: {said}")]);
    assert_eq!(told_of(BEFORE, false), [format!("warning: {said}")]);
    let grounded = circle.replace("vouchedBy = \"carol\"", "vouchedBy = [ \"carol\" \"alice\" ]");
    assert_eq!(told(Some(BEFORE), &with(&grounded), false), [""; 0]);
    // Who hangs on a circle is not in it.
    let tail = circle.replace("carol = {", "alice2 = { keys = \"$A\"; vouchedBy = \"carol\"; }; carol = {");
    assert_eq!(told(Some(BEFORE), &with(&tail), false), [format!("warning: {said}")]);
}
