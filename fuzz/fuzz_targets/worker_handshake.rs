#![no_main]
//! Any bytes as a greeting.

use libfuzzer_sys::fuzz_target;
use wire::worker::{CLIENT_MAGIC, Connection, ServerInfo, Version};

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let accepted = Connection::accept(data, tokio::io::sink(), ServerInfo::new("2.34.0")).await;
        if let Ok(conn) = accepted {
            assert_eq!(data[..8], CLIENT_MAGIC.to_le_bytes());
            assert!((Version::OLDEST..=Version::NEWEST).contains(&conn.protocol().version));
        }
    });
});
