//! Shared parts of the worker protocol's tests: bytes written by hand, and example paths.
#![allow(dead_code)] // every test file uses its own half

use std::collections::{BTreeMap, BTreeSet};

use nix::PathInfo;
use nix::derivation::BasicDerivation;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, Output, StorePath};
use wire::worker::{Connection, Protocol};

/// Bytes written as tokens of the protocol. Deliberately independent of the crate's own encoder.
#[derive(Default, Clone)]
pub struct Bytes(pub Vec<u8>);

pub fn bytes() -> Bytes {
    Bytes::default()
}

impl Bytes {
    pub fn n(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn s(self, value: &str) -> Self {
        self.b(value.as_bytes())
    }

    pub fn b(mut self, value: &[u8]) -> Self {
        self = self.n(value.len() as u64);
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }

    pub fn raw(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }
}

pub const A: &str = "/nix/store/00000000000000000000000000000000-a";
pub const B: &str = "/nix/store/11111111111111111111111111111111-b";
pub const DRV: &str = "/nix/store/22222222222222222222222222222222-x.drv";
pub const OUT: &str = "/nix/store/33333333333333333333333333333333-x";
pub const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

pub fn path(text: &str) -> StorePath {
    StorePath::from_absolute_path(text.as_bytes()).unwrap()
}

pub fn digest() -> [u8; 32] {
    std::array::from_fn(|i| i as u8)
}

pub fn paths(texts: &[&str]) -> Vec<StorePath> {
    texts.iter().map(|text| path(text)).collect()
}

pub fn path_set(texts: &[&str]) -> BTreeSet<StorePath> {
    texts.iter().map(|text| path(text)).collect()
}

pub fn info() -> PathInfo {
    PathInfo {
        path: path(A),
        deriver: Some(path(DRV)),
        nar_hash: digest(),
        references: path_set(&[A, B]),
        registration_time: 1_700_000_000,
        nar_size: 120,
        ultimate: true,
        signatures: vec!["k:c2ln".into()],
        ca: None,
    }
}

/// The fields of [`info`] after its path.
pub fn info_bytes(out: Bytes) -> Bytes {
    out.s(DRV).s(HEX).n(2).s(A).s(B).n(1_700_000_000).n(120).n(1).n(1).s("k:c2ln").s("")
}

pub fn derivation() -> BasicDerivation {
    let outputs = [
        (
            "dev",
            Output::Floating { method: ContentAddressMethod::Nar, hash_algorithm: HashAlgorithm::Sha256 },
        ),
        ("out", Output::InputAddressed { path: path(OUT) }),
    ];
    BasicDerivation {
        outputs: outputs.into_iter().map(|(name, output)| (name.to_owned(), output)).collect(),
        input_sources: path_set(&[A]),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec!["-c".into(), "echo > $out".into()],
        env: BTreeMap::from([(b"out".to_vec(), OUT.into()), (b"raw".to_vec(), b"\xff\0\n".to_vec())]),
    }
}

pub type Server = Connection<std::io::Cursor<Vec<u8>>, tokio::io::DuplexStream>;

/// A server that receives these bytes and then a hang-up; and the stream to which it writes.
pub fn serve(bytes: &[u8], protocol: Protocol) -> (Server, tokio::io::DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Connection::after_handshake(std::io::Cursor::new(bytes.to_vec()), ours, protocol, 1 << 20), theirs)
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
