use super::*;

fn values() -> Values {
    Values {
        alias: "box".into(),
        host: "box.example.org".into(),
        port: 2222,
        user: "alice".into(),
        host_key: "ssh-ed25519 AAAA".into(),
        signing_key: "box-1:BBBB".into(),
        systems: vec!["x86_64-linux".into(), "i686-linux".into()],
        features: vec!["big-parallel".into()],
        max_jobs: 3,
        key: None,
    }
}

#[test]
fn a_line_of_machines_has_its_eight_fields() {
    let text = formats::machines(&values());
    let line = text.lines().find(|line| !line.starts_with('#')).expect("a line");
    assert_eq!(
        line.split(' ').collect::<Vec<_>>(),
        [
            "ssh-ng://alice@box",
            "x86_64-linux,i686-linux",
            "/root/.ssh/barnraiser",
            "3",
            "1",
            "big-parallel",
            "-",
            "c3NoLWVkMjU1MTkgQUFBQQ=="
        ]
    );
    let none = Values { features: Vec::new(), key: Some("/k".into()), ..values() };
    assert!(formats::machines(&none).contains(" x86_64-linux,i686-linux /k 3 1 - - "));
}

#[test]
fn a_name_of_a_box_becomes_one_word_without_patterns() {
    for (name, expected) in
        [("box.example.org", "box.example.org"), ("Our box *", "Our-box"), ("☃", "box"), ("", "box")]
    {
        assert_eq!(alias(name), expected, "{name}");
    }
}

#[test]
fn a_key_file_is_nothing_but_a_file_name() {
    for text in ["~/.ssh/id_ed25519", "/root/.ssh/barnraiser"] {
        assert_eq!(key_file(text), Ok(text.to_owned()));
    }
    for text in ["", "a b", "a\nProxyCommand x", "\"", "${x}", "%h", "a;b"] {
        assert!(key_file(text).is_err(), "{text}");
    }
}
