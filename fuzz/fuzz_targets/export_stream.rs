#![no_main]
//! Any bytes as an export stream: what is taken for one is, written by us and read again, the same paths and contents.

use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncReadExt;
use wire::serve::{Connection, ImportedInfo, Request, Response, version};
use wire::serve_client::{encode_export, encode_request};

type Items = Vec<(ImportedInfo, Vec<u8>)>;

async fn read(conn: &mut Connection<&[u8], tokio::io::Sink>) -> Option<Items> {
    let mut items = Vec::new();
    while conn.next_nar().await.ok()? {
        let mut nar = Vec::new();
        conn.body().read_to_end(&mut nar).await.ok()?;
        items.push((conn.trailer().await.ok()?, nar));
    }
    Some(items)
}

fuzz_target!(|data: &[u8]| {
    let mut stream = encode_request(&Request::ImportPaths, version(7));
    stream.extend_from_slice(data);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut conn = Connection::after_handshake(&stream[..], tokio::io::sink(), version(7), 1 << 30);
        assert_eq!(conn.next_request().await.expect("a request of ours"), Some(Request::ImportPaths));
        let Some(items) = read(&mut conn).await else { return };
        conn.reply(&Response::Done).await.expect("nothing is left to skip");
        // Sets are sorted when they are written, and signatures left out; so the second writing is the measure.
        let again = encode_export(&items);
        let mut stream = encode_request(&Request::ImportPaths, version(7));
        stream.extend_from_slice(&again);
        let mut conn = Connection::after_handshake(&stream[..], tokio::io::sink(), version(7), 1 << 30);
        conn.next_request().await.expect("a request of ours");
        assert_eq!(read(&mut conn).await.expect("an export stream of ours"), items);
    });
});
