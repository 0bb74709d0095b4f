use super::*;
use proptest::prelude::*;

/// A NAR from its strings.
fn nar(tokens: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for token in tokens {
        bytes.extend((token.len() as u64).to_le_bytes());
        bytes.extend_from_slice(token);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

const FILE: &[&[u8]] = &[b"nix-archive-1", b"(", b"type", b"regular", b"contents", b"hello", b")"];

fn tree() -> Vec<u8> {
    let mut tokens: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"directory"];
    let entries: [(&[u8], &[&[u8]]); 5] = [
        (b"a", &[b"(", b"type", b"regular", b"executable", b"", b"contents", b"12345678", b")"]),
        (b"b", &[b"(", b"type", b"regular", b"contents", b"", b")"]),
        (b"c", &[b"(", b"type", b"regular", b")"]),
        (b"d", &[b"(", b"type", b"symlink", b"target", b"../e", b")"]),
        (b"e", &[b"(", b"type", b"directory", b")"]),
    ];
    for (name, node) in entries {
        tokens.extend([b"entry" as &[u8], b"(", b"name", name, b"node"]);
        tokens.extend_from_slice(node);
        tokens.push(b")");
    }
    tokens.push(b")");
    nar(&tokens)
}

fn scan(bytes: &[u8]) -> Result<(usize, bool), NarError> {
    let mut scanner = NarScanner::new();
    let used = scanner.push(bytes)?;
    Ok((used, scanner.is_finished()))
}

#[test]
fn the_end_of_a_nar_is_found_with_anything_behind_it() {
    for nar in [nar(FILE), tree()] {
        let mut stream = nar.clone();
        stream.extend_from_slice(b"the next request");
        assert_eq!(scan(&stream), Ok((nar.len(), true)));
    }
}

#[test]
fn need_never_reaches_past_the_end_and_is_zero_there() {
    let tree = tree();
    let mut scanner = NarScanner::new();
    let mut at = 0;
    while scanner.need() > 0 {
        let next = at + scanner.need() as usize;
        assert!(next <= tree.len());
        assert_eq!(scanner.push(&tree[at..next]), Ok(next - at));
        at = next;
    }
    assert_eq!(at, tree.len());
    assert!(scanner.is_finished());
}

#[test]
fn a_nar_cut_off_anywhere_is_not_finished() {
    let tree = tree();
    for len in 0..tree.len() {
        assert_eq!(scan(&tree[..len]), Ok((len, false)), "after {len} bytes");
    }
}

#[test]
fn directories_may_be_nested_up_to_the_limit_and_no_deeper() {
    for (depth, good) in [(MAX_NAR_DEPTH, true), (MAX_NAR_DEPTH + 1, false)] {
        let mut tokens: Vec<&[u8]> = vec![b"nix-archive-1"];
        for _ in 1..depth {
            tokens.extend([b"(" as &[u8], b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]);
        }
        tokens.extend([b"(" as &[u8], b"type", b"directory", b")"]);
        for _ in 1..depth {
            tokens.extend([b")" as &[u8], b")"]);
        }
        match scan(&nar(&tokens)) {
            Ok((_, true)) => assert!(good, "{depth} directories were accepted"),
            Err(NarError::TooDeep { limit: MAX_NAR_DEPTH, .. }) => {
                assert!(!good, "{depth} directories were refused")
            }
            other => panic!("{depth} directories: {other:?}"),
        }
    }
}

#[test]
fn names_that_leave_their_directory_are_refused() {
    for name in [b"" as &[u8], b".", b"..", b"a/b", b"/", b"a\0"] {
        let bytes = nar(&[b"nix-archive-1", b"(", b"type", b"directory", b"entry", b"(", b"name", name]);
        assert!(matches!(scan(&bytes), Err(NarError::BadName { .. })), "{name:?}");
    }
}

#[test]
fn strings_longer_than_their_limit_are_refused_before_they_arrive() {
    let cases: [(&[&[u8]], u64); 3] = [
        (&[], 17),
        (&[b"nix-archive-1", b"(", b"type", b"directory", b"entry", b"(", b"name"], MAX_NAR_NAME_BYTES + 1),
        (&[b"nix-archive-1", b"(", b"type", b"symlink", b"target"], MAX_NAR_TARGET_BYTES + 1),
    ];
    for (tokens, len) in cases {
        let mut bytes = nar(tokens);
        bytes.extend(len.to_le_bytes());
        assert!(matches!(scan(&bytes), Err(NarError::TooLong { len: got, .. }) if got == len), "{tokens:?}");
    }
}

#[test]
fn contents_of_any_announced_size_cost_no_memory() {
    let mut bytes = nar(&FILE[..5]);
    bytes.extend((1u64 << 60).to_le_bytes());
    let mut scanner = NarScanner::new();
    scanner.push(&bytes).unwrap();
    assert!(scanner.in_contents());
    assert_eq!(scanner.need(), 1 << 60);
    scanner.push(&[7; 4096]).unwrap();
    assert_eq!(scanner.text.capacity(), scanner.text.capacity().min(64));
}

#[test]
fn lengths_that_cannot_be_padded_are_refused() {
    for len in [u64::MAX, u64::MAX - 6] {
        let mut bytes = nar(&FILE[..5]);
        bytes.extend(len.to_le_bytes());
        assert!(matches!(scan(&bytes), Err(NarError::TooLong { .. })), "{len}");
    }
}

#[test]
fn padding_must_be_zero() {
    let mut bytes = nar(FILE);
    // "hello" ends 3 bytes before the last string, which takes 16.
    let at = bytes.len() - 17;
    bytes[at] = 1;
    assert!(matches!(scan(&bytes), Err(NarError::Padding { .. })));
}

#[test]
fn where_a_flat_file_is_expected_nothing_else_passes() {
    let push = |bytes: &[u8]| NarScanner::flat().push(bytes);
    assert_eq!(push(&nar(FILE)), Ok(nar(FILE).len()));
    assert_eq!(push(&tree()), Err(NarError::NotFlat));
    let executable: &[&[u8]] = &[b"nix-archive-1", b"(", b"type", b"regular", b"executable", b""];
    assert_eq!(push(&nar(executable)), Err(NarError::NotFlat));
}

proptest! {
    #[test]
    fn how_the_bytes_are_cut_does_not_matter(cuts in prop::collection::vec(1usize..40, 1..40)) {
        let tree = tree();
        let mut scanner = NarScanner::new();
        let mut at = 0;
        for cut in cuts.iter().cycle() {
            if at == tree.len() {
                break;
            }
            let next = tree.len().min(at + cut);
            prop_assert_eq!(scanner.push(&tree[at..next]), Ok(next - at));
            at = next;
        }
        prop_assert!(scanner.is_finished());
    }

    #[test]
    fn a_changed_byte_is_an_error_or_another_nar_and_never_a_panic(at in 0usize..900, to: u8) {
        let mut tree = tree();
        let at = at % tree.len();
        tree[at] = to;
        let _ = scan(&tree);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = scan(&bytes);
    }
}
