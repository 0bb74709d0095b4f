use super::*;
use crate::nix::Limits;
use crate::roster::evaluate;
use crate::source::Memory;
use crate::test_keys::*;

fn members(users: &str) -> Vec<Member> {
    let users = users.replace("$A", A).replace("$B", B).replace("$C", ECDSA_256).replace("$R", RSA_3072);
    evaluate(Memory::with(&[("users.nix", &users)]), "users.nix", Limits::default())
        .unwrap_or_else(|error| panic!("{error}"))
        .members
}

fn exported(users: &str, format: Format) -> Exported {
    let account = "nix-builder".parse().expect("an account");
    export(&members(users), format, &account, Day::parse("2027-06-15").expect("a day").end().0)
}

#[test]
fn each_key_keeps_what_sshd_can_enforce_of_it() {
    let text = exported(
        "{ a = { keys = [ \"$A laptop\" \"expiry-time=\\\"20270801\\\" $B\" ]; expires = \"2027-12-31\"; }; \
         b.keys = \"from=\\\"192.0.2.0/24\\\" $C\"; c.keys = \"cert-authority $R\"; }",
        Format::AuthorizedKeys,
    )
    .text;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            format!("restrict,expiry-time=\"20271231235959Z\" {A} a"),
            format!("restrict,expiry-time=\"20270801000000Z\" {B} a"),
            format!("restrict,from=\"192.0.2.0/24\" {ECDSA_256} b"),
            format!("restrict,cert-authority,principals=\"c\" {RSA_3072} c"),
        ]
    );
    let plain = exported("{ a.keys = \"$A\"; }", Format::AuthorizedKeys).text;
    assert!(plain.ends_with(&format!("\nrestrict {A} a\n")), "{plain}");
}

#[test]
fn who_has_expired_is_left_out_aloud() {
    let users = "{ a = { keys = \"$A\"; expires = \"2027-06-14\"; }; b.keys = [ \"expiry-time=\\\"20270101\\\" $B\" \"$C\" ]; }";
    let exported = exported(users, Format::AuthorizedKeys);
    assert!(!exported.text.contains(A) && !exported.text.contains(B) && exported.text.contains(ECDSA_256));
    assert_eq!(exported.warnings.len(), 2, "{:?}", exported.warnings);
    assert_eq!(exported.warnings[0], "`a` has expired on 2027-06-14 and is left out");
}

#[test]
fn a_module_is_read_again_as_one_user_with_all_keys() {
    let users = "{ a.keys = \"$A\"; b.keys = \"cert-authority,principals=\\\"\\${x},$\\${y},$$\\\" $B\"; }";
    for format in [Format::Nixos, Format::NixDarwin] {
        let text = exported(users, format).text;
        let again = evaluate(Memory::with(&[("users.nix", &text)]), "users.nix", Limits::default())
            .unwrap_or_else(|error| panic!("{text}\n{error}"));
        assert!(again.mistakes.is_empty() && again.warnings.is_empty(), "{again:?}");
        let [member] = &again.members[..] else { panic!("{again:?}") };
        assert_eq!(member.name, "nix-builder");
        assert_eq!(
            member.keys,
            [format!("{A} a"), format!("cert-authority,principals=\"${{x}},$${{y}},$$\" {B} b")]
        );
    }
}

/// `tests/agree.rs` compares what Nix says to these files with what our evaluator says. After a deliberate change,
/// `UPDATE=1` rewrites them; then `tests/agree/record.sh` asks Nix again.
#[test]
fn the_modules_that_nix_was_asked_about_are_what_is_exported() {
    let users = "{ a = { keys = [ \"$A\" \"$R\" ]; expires = \"2028-02-29\"; }; \
                 b.keys = \"cert-authority,principals=\\\"\\${x},$\\${y},$$,$\\\" $B\"; \
                 c.keys = \"from=\\\"192.0.2.0/24\\\" $C\"; }";
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agree/exported");
    for (format, file) in [(Format::Nixos, "nixos.nix"), (Format::NixDarwin, "nix-darwin.nix")] {
        let (path, text) = (folder.join(file), exported(users, format).text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &text).expect("the folder of the questions");
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
    }
}

#[test]
fn an_account_needs_no_quoting() {
    for name in ["nix-builder", "_b", "b1"] {
        name.parse::<Account>().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in ["", "1b", "-b", "B", "a b", "a\"", "a.b", &"a".repeat(33)] {
        name.parse::<Account>().expect_err(name);
    }
}
