//! Worker protocol and NAR bytes by hand, for what stock clients would never send.
//! Layout: Nix, src/libstore/worker-protocol.cc and src/libutil/archive.cc.

/// `WORKER_MAGIC_1`.
const CLIENT_MAGIC: u64 = 0x6e69_7863;
/// `wopAddToStoreNar`.
const ADD_TO_STORE_NAR: u64 = 39;
/// `STDERR_ERROR`: an error for the client follows.
pub const ERROR: u64 = 0x6378_7470;
/// `STDERR_LAST`: the request succeeded.
pub const LAST: u64 = 0x616c_7473;

/// Little-endian words, and strings padded to words.
#[derive(Default, Clone)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn word(mut self, value: u64) -> Bytes {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn text(self, text: impl AsRef<[u8]>) -> Bytes {
        let text = text.as_ref();
        let mut bytes = self.word(text.len() as u64);
        bytes.0.extend(text);
        bytes.0.resize(bytes.0.len().next_multiple_of(8), 0);
        bytes
    }

    pub fn texts(self, texts: &[&str]) -> Bytes {
        texts.iter().fold(self, |bytes, text| bytes.text(text))
    }

    pub fn raw(mut self, raw: &[u8]) -> Bytes {
        self.0.extend(raw);
        self
    }
}

/// A greeting of protocol 1.23, the first with framed uploads.
pub fn hello() -> Bytes {
    Bytes::default().word(CLIENT_MAGIC).word(0x117).word(0).word(0)
}

/// The head of an upload; frames with the NAR follow.
pub fn add_to_store_nar(path: &str, nar_hash: &str, nar_size: u64) -> Bytes {
    // Path, deriver, hash, references, time, size, ultimate, signatures, content address, repair, don't check.
    hello().word(ADD_TO_STORE_NAR).text(path).text("").text(nar_hash).word(0).word(0).word(nar_size).word(0).word(0).text("").word(0).word(1)
}

/// A whole upload in one frame.
pub fn upload(path: &str, nar_hash: &str, nar: &[u8]) -> Vec<u8> {
    add_to_store_nar(path, nar_hash, nar.len() as u64).word(nar.len() as u64).raw(nar).word(0).0
}

/// Is there an error frame in what the box answered?
pub fn has(word: u64, answer: &[u8]) -> bool {
    answer.chunks_exact(8).any(|chunk| chunk == word.to_le_bytes())
}

/// A NAR with one regular file.
pub fn nar_of_file(contents: &[u8]) -> Vec<u8> {
    Bytes::default().texts(&["nix-archive-1", "(", "type", "regular", "contents"]).text(contents).text(")").0
}

/// A NAR of a folder with empty files of these names, in this order, legal or not.
pub fn nar_of_names(names: &[&str]) -> Vec<u8> {
    let mut bytes = Bytes::default().texts(&["nix-archive-1", "(", "type", "directory"]);
    for name in names {
        bytes = bytes.texts(&["entry", "(", "name", name, "node", "(", "type", "regular", "contents", "", ")", ")"]);
    }
    bytes.text(")").0
}

/// A NAR of folders inside each other.
pub fn nar_of_depth(depth: usize) -> Vec<u8> {
    let mut bytes = Bytes::default().text("nix-archive-1");
    for _ in 0..depth {
        bytes = bytes.texts(&["(", "type", "directory", "entry", "(", "name", "d", "node"]);
    }
    bytes = bytes.texts(&["(", "type", "directory", ")"]);
    for _ in 0..depth {
        bytes = bytes.texts(&[")", ")"]);
    }
    bytes.0
}
