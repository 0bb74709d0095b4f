//! The words of the NAR grammar as they stand on the wire.
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

pub(super) const START: &[u8] = &run::<56>(&["nix-archive-1", "(", "type"]);
pub(super) const REGULAR: &[u8] = &run::<16>(&["regular"]);
pub(super) const SYMLINK: &[u8] = &run::<16>(&["symlink"]);
pub(super) const DIRECTORY: &[u8] = &run::<24>(&["directory"]);
pub(super) const EXECUTABLE: &[u8] = &run::<48>(&["executable", "", "contents"]);
pub(super) const CONTENTS: &[u8] = &run::<16>(&["contents"]);
pub(super) const TARGET: &[u8] = &run::<16>(&["target"]);
pub(super) const ENTRY: &[u8] = &run::<48>(&["entry", "(", "name"]);
pub(super) const NODE: &[u8] = &run::<48>(&["node", "(", "type"]);
pub(super) const CLOSE: &[u8] = &run::<16>(&[")"]);

/// Zeros after `len` bytes.
pub(super) const fn padding(len: u64) -> u8 {
    ((8 - len % 8) % 8) as u8
}
