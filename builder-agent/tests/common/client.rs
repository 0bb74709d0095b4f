//! The client of a worker session: it has builds made, and reads what it is told of them.

use nix::derivation::BasicDerivation;
use nix::{BuildMode, BuildStatus};
use nix_derivation::StorePath;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::client::{Client, End, Frame, encode_file_nar};
use wire::types::ClientSettings;
use wire::worker::Request;

use super::PATIENCE;
use super::scripted::{info_of, path};

/// A derivation without inputs that are derivations, and its path.
pub type Drv = (StorePath, BasicDerivation);

/// What a client is told of its build.
#[derive(Debug)]
pub struct Told {
    pub frames: Vec<Frame>,
    pub status: u64,
    pub message: String,
}

impl Told {
    #[track_caller]
    pub fn is(&self, status: BuildStatus) -> &Self {
        assert_eq!(self.status, status as u64, "{self:?}");
        self
    }

    /// The lines of the build's log.
    pub fn log(&self) -> Vec<String> {
        lines(&self.frames)
    }
}

/// The lines of build logs among the frames.
pub fn lines(frames: &[Frame]) -> Vec<String> {
    let line = |frame: &Frame| match frame {
        Frame::Result(_, 101, fields) => Some(String::from_utf8_lossy(&fields[0]).into_owned()),
        _ => None,
    };
    frames.iter().filter_map(line).collect()
}

/// The request for a build of this derivation.
pub fn build_request((drv_path, derivation): Drv, mode: BuildMode) -> Request {
    Request::BuildDerivation { drv_path, derivation, mode }
}

/// Asks for a build, whose answer is still to be read.
pub async fn send(client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>, drv: Drv) {
    client.request(&build_request(drv, BuildMode::Normal)).await.expect("sent");
}

/// Reads the answer to the request for a build.
pub async fn told(client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>) -> Told {
    let frames = client.done().await.expect("an answer");
    let status = client.u64().await.expect("a status");
    let message = client.string().await.expect("a message");
    for _ in 0..4 {
        client.u64().await.expect("times and counts");
    }
    for _ in 0..client.u64().await.expect("outputs") {
        client.string().await.expect("id");
        client.string().await.expect("realisation");
    }
    Told { frames, status, message }
}

pub async fn build(client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>, drv: Drv) -> Told {
    send(client, drv).await;
    told(client).await
}

/// Uploads a file. Returns why it is refused, if it is.
pub async fn add(
    client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    name: &str,
    contents: &[u8],
) -> Option<String> {
    add_with(client, name, contents, &[]).await
}

/// The same for a file that refers to these paths.
pub async fn add_with(
    client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    name: &str,
    contents: &[u8],
    references: &[StorePath],
) -> Option<String> {
    let nar = encode_file_nar(contents, false);
    let info = info_of(path(name), &nar, references);
    client
        .request(&Request::AddToStoreNar { info, repair: false, dont_check_sigs: true })
        .await
        .expect("sent");
    client.framed(&nar).await.expect("sent");
    match client.log().await.expect("an answer").1 {
        End::Last => None,
        End::Error(message) => Some(message),
        end => panic!("{end:?}"),
    }
}

/// Whether the member of this session has the path.
pub async fn is_valid(
    client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    path: &StorePath,
) -> bool {
    client.call(&Request::IsValidPath { path: path.clone() }).await.expect("an answer");
    client.u64().await.expect("a bool") == 1
}

/// Sets an option of the session, as `--option` does.
pub async fn set_option(
    client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    name: &str,
    value: &str,
) {
    let overrides = [(name.to_owned(), value.to_owned())].into();
    let settings = ClientSettings { overrides, ..ClientSettings::default() };
    client.call(&Request::SetOptions(settings)).await.expect("taken");
}

/// One message that a client gets while it waits for an answer.
enum Message {
    Start,
    Note(String),
    Line(String),
    Other,
}

/// Reads a client's stream up to a line of log.
pub async fn wait_for_line(
    client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    wanted: &str,
) {
    let reading = async { while !matches!(message(client).await, Message::Line(line) if line == wanted) {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("the line never came");
}

/// Reads a client's stream up to the start of an activity. A client that builds gets one as soon as it waits for a run.
pub async fn wait_for_start(client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>) {
    let reading = async { while !matches!(message(client).await, Message::Start) {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("nothing was started");
}

/// Reads a client's stream up to the message that says why a build waits. Returns its text.
pub async fn wait_for_reason(client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>) -> String {
    let reading = async {
        loop {
            if let Message::Note(text) = message(client).await
                && text.starts_with("waiting for a slot")
            {
                return text.trim_end().to_owned();
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("nobody said why the build waits")
}

/// Reads one message. (Nix: src/libstore/worker-protocol.hh has the numbers.)
async fn message(client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>) -> Message {
    let number = |n: Result<u64, _>| n.expect("a number");
    match number(client.u64().await) {
        0x5354_5254 => {
            for _ in 0..3 {
                number(client.u64().await);
            }
            client.bytes().await.expect("text");
            fields(client).await;
            number(client.u64().await);
            Message::Start
        }
        0x5354_4f50 => {
            number(client.u64().await);
            Message::Other
        }
        0x5253_4c54 => {
            let (_, kind) = (number(client.u64().await), number(client.u64().await));
            let texts = fields(client).await;
            match kind {
                101 => Message::Line(String::from_utf8_lossy(&texts[0]).into_owned()),
                _ => Message::Other,
            }
        }
        0x6f6c_6d67 => {
            let text = client.bytes().await.expect("a message");
            Message::Note(String::from_utf8_lossy(&text).into_owned())
        }
        other => panic!("the log ended: {other:#x}"),
    }
}

async fn fields(client: &mut Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>) -> Vec<Vec<u8>> {
    let mut texts = Vec::new();
    for _ in 0..client.u64().await.expect("a count") {
        match client.u64().await.expect("a kind") {
            0 => drop(client.u64().await.expect("a number")),
            _ => texts.push(client.bytes().await.expect("text")),
        }
    }
    texts
}
