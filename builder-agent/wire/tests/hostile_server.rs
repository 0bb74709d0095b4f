//! A hostile server: a log frame that announces too much is refused before its memory is allocated.

use tokio::io::sink;
use wire::WireError;
use wire::client::Client;
use wire::worker::SERVER_MAGIC;

const STDERR_LAST: u64 = 0x616c_7473;
const STDERR_ERROR: u64 = 0x6378_7470;
const STDERR_START_ACTIVITY: u64 = 0x5354_5254;
const STDERR_RESULT: u64 = 0x5253_4c54;

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A string of zero bytes in its wire form.
fn zeros(len: usize) -> Vec<u8> {
    let mut out = numbers(&[len as u64]);
    out.resize(8 + len.next_multiple_of(8), 0);
    out
}

/// The client's result at version 1.37, after a valid handshake and then `log`.
async fn after(log: Vec<Vec<u8>>) -> Result<Vec<wire::client::Frame>, WireError> {
    let mut sent = numbers(&[SERVER_MAGIC, 1 << 8 | 37, 0, 1, STDERR_LAST]);
    sent.extend(log.concat());
    let mut client = Client::connect(&sent[..], sink(), 37, &[]).await.expect("a handshake");
    client.max_frames = 0;
    client.done().await
}

fn error(read: Result<Vec<wire::client::Frame>, WireError>) -> String {
    read.expect_err("too much").to_string()
}

#[tokio::test]
async fn counts_in_a_log_are_refused_when_announced() {
    for count in [65, u64::MAX] {
        let said = error(after(vec![numbers(&[STDERR_RESULT, 1, 101, count])]).await);
        assert!(said.contains("fields") && said.contains("64"), "{said}");
        let begin = numbers(&[STDERR_START_ACTIVITY, 1, 0, 0, 0, count]);
        let said = error(after(vec![begin]).await);
        assert!(said.contains("fields"), "{said}");
    }
    let traces = numbers(&[STDERR_ERROR, 0, 0, 0, 0, 0, u64::MAX]);
    let said = error(after(vec![traces]).await);
    assert!(said.contains("traces"), "{said}");
}

#[tokio::test]
async fn the_strings_of_one_frame_share_one_budget() {
    let text = [numbers(&[1]), zeros(1 << 20)].concat();
    let frame = |count: u64| {
        let head = numbers(&[STDERR_RESULT, 1, 101, count]);
        vec![head, text.repeat(count as usize), numbers(&[STDERR_LAST])]
    };
    assert_eq!(after(frame(15)).await.expect("within bounds"), []);
    let said = error(after(frame(17)).await);
    assert!(said.contains("16777216"), "{said}");
    let trace = [numbers(&[0]), zeros(1 << 20)].concat();
    let traces = vec![numbers(&[STDERR_ERROR, 0, 0, 0, 0, 0, 17]), trace.repeat(17)];
    let said = error(after(traces).await);
    assert!(said.contains("16777216"), "{said}");
}
