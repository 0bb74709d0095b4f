#![no_main]
//! Any bytes as one framed body, compared with a decoder that takes five lines.

use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncReadExt;
use wire::client::encode_request;
use nix_derivation::{ContentAddressMethod, HashAlgorithm};
use wire::worker::{Connection, Failure, Protocol, Request};

/// The body and what follows it, if the frames are complete.
fn reference(mut data: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let (length, rest) = data.split_first_chunk::<8>()?;
        let length = u64::from_le_bytes(*length);
        if length == 0 {
            return Some((body, rest));
        }
        let length = usize::try_from(length).ok()?;
        body.extend_from_slice(rest.get(..length)?);
        data = &rest[length..];
    }
}

fuzz_target!(|data: &[u8]| {
    let protocol = Protocol::plain(38);
    let request = Request::AddToStore {
        name: "x".into(),
        method: ContentAddressMethod::Flat,
        algorithm: HashAlgorithm::Sha256,
        references: Default::default(),
        repair: false,
    };
    let mut stream = encode_request(&request, protocol);
    stream.extend_from_slice(data);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut conn = Connection::after_handshake(&stream[..], tokio::io::sink(), protocol, 1 << 30);
        assert_eq!(conn.next_request().await.expect("a request of ours"), Some(request));
        let mut body = Vec::new();
        let read = conn.body().read_to_end(&mut body).await;
        match reference(data) {
            Some((expected, rest)) => {
                read.expect("complete frames");
                assert_eq!(body, expected);
                conn.fail(&Failure::new("no")).await.expect("nothing left to skip");
                assert_eq!(rest.is_empty(), matches!(conn.next_request().await, Ok(None)));
            }
            None => assert!(read.is_err()),
        }
    });
});
