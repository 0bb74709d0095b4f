use super::*;

const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl";
const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILzCIdzYczmmlDk8ussjhaNUDX+Jf/bMsqNAWcdAohZz";

fn error(line: &str) -> KeyError {
    parse_line(line).expect_err(line)
}

#[test]
fn a_second_key_on_a_line_is_no_comment() {
    for line in [
        format!("{A} alice@home{B} alice@work"),
        format!("{A} {B}"),
        format!("{A} alice@home {B}"),
        format!("{A}{B}"),
        format!("{A}\u{b}{B}"),
        format!("{A} alice\r{B}"),
        format!("restrict {A} x,{B}"),
    ] {
        assert_eq!(error(&line), KeyError::TwoKeys, "{line}");
    }
    for comment in ["AAAA", "alice@AAAArdvark", "ssh-ed25519", "SHA256:AAAAC3NzaC1lZDI1NTE5 laptop"] {
        assert_eq!(parse_line(&format!("{A} {comment}")).expect(comment).comment, comment);
    }
}

#[test]
fn an_option_is_enforced_or_changes_nothing_or_is_refused_with_its_name() {
    let key = parse_line(&format!("no-pty,from=\"10.0.0.0/8\",restrict,expiry-time=\"20270131\" {A} x y"))
        .expect("good");
    assert_eq!(key.line(), format!("from=\"10.0.0.0/8\",expiry-time=\"20270131000000Z\" {A} x y"));
    let inside = "10.1.1.1".parse().expect("an address");
    let midnight = Moment::parse("20270131").expect("a moment").0;
    assert_eq!(key.conditions(inside, midnight), Ok(()));
    assert!(key.conditions(inside, midnight + 1).unwrap_err().contains("expiry-time"));
    assert!(key.conditions("192.0.2.1".parse().expect("an address"), 0).unwrap_err().contains("10.0.0.0/8"));
    assert_eq!(parse_line(&format!("no-touch-required {A}")).expect("good").line(), A);

    for (options, name) in [
        ("command=\"nix-store --serve\"", "command"),
        ("no-pty,verify-required", "verify-required"),
        ("environment=\"A=b\"", "environment"),
        ("tunnel=\"1\"", "tunnel"),
        ("certauthority", "certauthority"),
        ("cert-authority=\"yes\"", "cert-authority"),
    ] {
        assert_eq!(error(&format!("{options} {A}")), KeyError::Option(name.into()), "{options}");
    }
    for (options, name) in [
        ("from=\"laptop.example.org\"", "from"),
        ("from=10.0.0.0/8", "from"),
        ("from", "from"),
        ("from=\"10.0.0.1\",from=\"10.0.0.2\"", "from"),
        ("expiry-time=\"soon\"", "expiry-time"),
        ("principals=\"alice\"", "principals"),
        ("cert-authority,principals=\"\"", "principals"),
        ("cert-authority,principals=\"alice,,bob\"", "principals"),
    ] {
        let found = error(&format!("{options} {A}"));
        assert!(
            matches!(found, KeyError::OptionValue { option, .. } if option == name),
            "{options}: {found:?}"
        );
    }
}

#[test]
fn an_authority_is_no_key_and_keeps_its_principals() {
    let plain = parse_line(A).expect("a key");
    assert_eq!(plain.authority, None);
    let bare = parse_line(&format!("cert-authority {A}")).expect("an authority");
    assert_eq!(bare.authority, Some(Authority { principals: None }));
    let line = format!("cert-authority,principals=\"alice,admins of x\" {A} our CA");
    let named = parse_line(&line).expect("an authority");
    let principals = Some(vec!["alice".to_owned(), "admins of x".to_owned()]);
    assert_eq!(named.authority, Some(Authority { principals }));
    assert_eq!((named.line(), &named.data), (line, &plain.data));
}

proptest::proptest! {
    #[test]
    fn what_is_accepted_is_written_so_that_it_means_the_same_again(
        options in "(cert-authority,|principals=\"[a-z,\\\\\"]{0,9}\",|from=\"[0-9.:/*!a-f,]{1,12}\",|expiry-time=\"[0-9]{8}\",|no-pty,){0,4}",
        comment in "\\PC{0,40}",
    ) {
        let line = format!("{}{A} {comment}", if options.is_empty() { String::new() } else { format!("{options}pty ") });
        if let Ok(key) = parse_line(line.trim()) {
            proptest::prop_assert_eq!(parse_line(&key.line()), Ok(key));
        }
    }
}
