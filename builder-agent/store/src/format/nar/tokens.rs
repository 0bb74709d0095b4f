//! The words of the NAR grammar in their wire form.
//!
//! A token is its length (u64, little endian), its bytes, and zeros up to a multiple of 8
//! (Nix: `src/libutil/archive.cc`). Between two variable parts (name, target, contents) a NAR has fixed runs of
//! tokens; both directions handle such a run as one constant.

/// The wire form of `words`, `N` bytes long; a wrong `N` does not compile.
const fn run<const N: usize>(words: &[&str]) -> [u8; N] {
    let mut out = [0; N];
    let mut at = 0;
    let mut w = 0;
    while w < words.len() {
        let word = words[w].as_bytes();
        out[at] = word.len() as u8;
        at += 8;
        let mut i = 0;
        while i < word.len() {
            out[at + i] = word[i];
            i += 1;
        }
        at += word.len().div_ceil(8) * 8;
        w += 1;
    }
    assert!(at == N, "the run of tokens has another length");
    out
}

pub(crate) const START: &[u8] = &run::<56>(&["nix-archive-1", "(", "type"]);
pub(crate) const REGULAR: &[u8] = &run::<16>(&["regular"]);
pub(crate) const SYMLINK: &[u8] = &run::<16>(&["symlink"]);
pub(crate) const DIRECTORY: &[u8] = &run::<24>(&["directory"]);
pub(crate) const EXECUTABLE: &[u8] = &run::<48>(&["executable", "", "contents"]);
pub(crate) const CONTENTS: &[u8] = &run::<16>(&["contents"]);
pub(crate) const TARGET: &[u8] = &run::<16>(&["target"]);
pub(crate) const ENTRY: &[u8] = &run::<48>(&["entry", "(", "name"]);
pub(crate) const NODE: &[u8] = &run::<48>(&["node", "(", "type"]);
pub(crate) const CLOSE: &[u8] = &run::<16>(&[")"]);

/// Number of padding zeros after `len` bytes.
pub(crate) const fn padding(len: u64) -> u8 {
    ((8 - len % 8) % 8) as u8
}

/// The bytes before and after the contents in the NAR of a single, non-executable file of `size` bytes.
pub(crate) fn flat_frame(size: u64) -> (Vec<u8>, Vec<u8>) {
    let before = [START, REGULAR, CONTENTS, &size.to_le_bytes()].concat();
    let after = [&[0; 8][..usize::from(padding(size))], CLOSE].concat();
    (before, after)
}
