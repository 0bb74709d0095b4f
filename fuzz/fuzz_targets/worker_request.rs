#![no_main]
//! Any bytes as requests and bodies. The first byte chooses the version.

use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncReadExt;
use wire::worker::{Connection, Failure, Features, Protocol, Request};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let mut protocol = Protocol::plain(18 + first % 21);
    if protocol.at_least(38) && first & 0x80 != 0 {
        protocol.features = Features::ALL;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut conn = Connection::after_handshake(rest, tokio::io::sink(), protocol, 1 << 30);
        while let Ok(Some(request)) = conn.next_request().await {
            let mut buffer = [0; 4096];
            if let Request::AddMultipleToStore { .. } = request {
                while let Ok(Some(_)) = conn.next_item().await {
                    while conn.body().read(&mut buffer).await.is_ok_and(|got| got > 0) {}
                }
            } else {
                while conn.body().read(&mut buffer).await.is_ok_and(|got| got > 0) {}
            }
            if conn.fail(&Failure::new("no")).await.is_err() {
                break;
            }
        }
    });
});
