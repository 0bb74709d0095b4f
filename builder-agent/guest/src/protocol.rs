//! Frames between the agent and the guest over one byte stream: a tag, a length, a body. Both sides compile this.
//!
//! ```text
//! +-----+-----------------+------------------+
//! | tag | length, u32 LE  | body             |
//! +-----+-----------------+------------------+
//! ```
//!
//! The host does not trust the guest: a length is checked against the limit of its tag before memory is
//! allocated, and `order` checks the order of frames. The guest trusts the host, but uses the same limits.
//! Small structured bodies are JSON; logs, files and NARs are raw bytes.
//! Not here: deadlines and byte budgets of a whole build (`sandbox::session`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Both sides come from one build of the workspace; this number detects an image that mixes two.
pub const VERSION: u32 = 5;

/// The host's well-known context id, to which the guest connects.
pub const VSOCK_CID: u32 = 2;
/// The port at the host to which the guest connects.
pub const VSOCK_PORT: u32 = 1024;
/// The ports at the host to which the guest of a home connects its sshds, one each.
pub const SSH_PORTS: RangeInclusive<u32> = 1025..=1088;

/// The size of the disk on which a home gets images of store paths, whatever is on it.
pub const DISK_BYTES: u64 = 1 << 40;

/// Tag and length.
pub const HEADER: usize = 5;

/// Largest body of raw bytes (log, file, NAR). Large enough that the overhead of frames is negligible, small
/// enough to keep a frame in memory.
pub const MAX_DATA: usize = 256 * 1024;

/// Largest small JSON body: a few numbers and one bounded string.
pub const MAX_NOTE: usize = 16 * 1024;

/// Largest job description. Linux refuses to exec with more than 6 MiB of arguments and environment;
/// JSON can make each byte six (`\u0001`).
pub const MAX_JOB: usize = 64 * 1024 * 1024;

/// Largest description of a home: two keys, a greeting and the names of a few files.
pub const MAX_HOME: usize = 256 * 1024;

/// Largest request to show store paths: the names of 60,000, which is how many a machine can have.
pub const MAX_ATTACH: usize = 16 * 1024 * 1024;

/// Random bytes for a copy of a machine: twice what the kernel's generator holds.
pub const SEED: usize = 64;

/// Random bytes in a hello.
pub const DRAW: usize = 16;

/// Longest text of an error that is sent or quoted.
pub const MAX_TEXT: usize = 4096;

/// The kind of a frame. The numbers are part of the protocol; never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Tag {
    /// Host to guest: [`Job`], once.
    Job = 1,
    /// Host to guest: the contents of all `Job::files`, then of all `Job::etc`, back to back, in pieces. Likewise those of
    /// `Home::etc` and `Attach::files`.
    FileData = 2,
    /// Host to guest: [`Home`], once, in place of a job.
    Home = 3,
    /// Host to guest, while the home runs: [`Attach`].
    Attach = 4,
    /// Host to guest, while the home runs: [`Open`].
    Open = 5,
    /// Host to guest, before the job or the home, if this machine is a copy of another one: [`Resume`]. The guest says hello
    /// again.
    Resume = 6,
    /// Guest to host, first frame: [`Hello`].
    Hello = 16,
    /// Guest to host: the builder runs from now on, or the home is ready for requests. Empty body.
    Started = 17,
    /// Guest to host: bytes from the builder's stdout and stderr.
    Log = 18,
    /// Guest to host: [`Exit`]; no builder process is left.
    Exit = 19,
    /// Guest to host: the name of the output whose NAR follows.
    OutputBegin = 20,
    /// Guest to host: a piece of that NAR.
    OutputData = 21,
    /// Guest to host: that NAR is complete. Empty body.
    OutputEnd = 22,
    /// Guest to host: nothing follows. Empty body.
    Done = 23,
    /// Guest to host: [`Failure`]; nothing follows.
    Failed = 24,
    /// Guest to host: [`Answer`] to an `Attach`. All requests of a home are answered in their order.
    Attached = 25,
    /// Guest to host: [`Answer`] to an `Open`. An sshd has the stream, if there was no error.
    Opened = 26,
}

impl Tag {
    /// The frame kind for a byte from the wire.
    pub fn from_byte(byte: u8) -> Option<Tag> {
        Some(match byte {
            1 => Tag::Job,
            2 => Tag::FileData,
            3 => Tag::Home,
            4 => Tag::Attach,
            5 => Tag::Open,
            6 => Tag::Resume,
            16 => Tag::Hello,
            17 => Tag::Started,
            18 => Tag::Log,
            19 => Tag::Exit,
            20 => Tag::OutputBegin,
            21 => Tag::OutputData,
            22 => Tag::OutputEnd,
            23 => Tag::Done,
            24 => Tag::Failed,
            25 => Tag::Attached,
            26 => Tag::Opened,
            _ => return None,
        })
    }

    /// Largest body a frame of this kind may have.
    pub fn limit(self) -> usize {
        match self {
            Tag::Job => MAX_JOB,
            Tag::Home => MAX_HOME,
            Tag::Attach => MAX_ATTACH,
            Tag::FileData | Tag::Log | Tag::OutputData => MAX_DATA,
            Tag::Open | Tag::Resume | Tag::Hello | Tag::Exit | Tag::Failed | Tag::Attached | Tag::Opened => {
                MAX_NOTE
            }
            // An output name is part of a store path name, which Nix limits to 211 bytes.
            Tag::OutputBegin => 256,
            Tag::Started | Tag::OutputEnd | Tag::Done => 0,
        }
    }
}

/// The job. Small; file contents follow it in `FileData` frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub system: String,
    /// Absolute path of the program, inside the sandbox.
    pub builder: Bytes,
    /// Arguments after argv[0].
    pub args: Vec<Bytes>,
    /// The whole environment; the guest adds nothing.
    pub env: BTreeMap<Bytes, Bytes>,
    /// Name below /build and length of its contents.
    pub files: Vec<(String, u64)>,
    /// Name below /etc and length of its contents (VM only). A name is that of a file, or has one of the folders
    /// [`etc::FOLDERS`](crate::etc::FOLDERS).
    pub etc: Vec<(String, u64)>,
    /// Output name to the absolute store path where the builder writes it.
    pub outputs: BTreeMap<String, String>,
    /// Whether there is a closure image to mount (VM only).
    pub closure: bool,
    /// Whether directories are listed in a random order.
    pub random_order: bool,
    /// The builder's network (VM only). `None`: its loopback interface, and no other.
    pub network: Option<Network>,
    pub limits: GuestLimits,
}

/// What makes a copy of a machine one of its own. Until it has this, the guest does nothing that another copy does not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// [`SEED`] random bytes, which no other machine has.
    pub seed: Bytes,
    /// The time: nanoseconds since 1970.
    pub unix_ns: u64,
}

/// A home: the member's account in it, and what its sshds need. The machine has a closure, which is its root image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// A UNIX user name.
    pub user: String,
    pub hostname: String,
    /// `None`: a loopback interface, and no other.
    pub network: Option<Network>,
    /// In the format of OpenSSH.
    pub ssh_host_key: String,
    /// The key that opens the home, in one line.
    pub authorized_key: String,
    /// As [`Job::etc`]; a file of the image with such a name is replaced.
    pub etc: Vec<(String, u64)>,
    /// Most processes and threads of the member at one time. A fork above it fails.
    pub processes: u32,
    /// For /etc/motd.
    pub greeting: String,
}

/// Store paths to show in a home. Those that it shows already are left as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Counts the requests of both kinds.
    pub number: u64,
    /// Where the image with `paths` lies on the growing disk.
    pub image: Option<Range>,
    /// Base names of store paths, which the root of the image has.
    pub paths: Vec<String>,
    /// Store paths that are small regular files, whose contents follow.
    pub files: Vec<StoreFile>,
    /// The one path is no store path: the image as a whole is shown under this name in the root directory of the home.
    #[serde(default)]
    pub in_root: bool,
}

/// Bytes of a disk, multiples of 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub offset: u64,
    pub len: u64,
}

/// A store path that is a regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreFile {
    /// Base name of the store path.
    pub name: String,
    pub size: u64,
    pub executable: bool,
}

/// A stream for an sshd. The guest connects to this port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Counts the requests of both kinds.
    pub number: u64,
    /// One of [`SSH_PORTS`].
    pub port: u32,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub number: u64,
    /// The reason why nothing of the request was done.
    pub error: Option<String>,
}

/// The network of a guest that has a network card: what its kernel and its /etc are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub ipv4: Option<Subnet<Ipv4Addr>>,
    pub ipv6: Option<Subnet<Ipv6Addr>>,
    /// For /etc/resolv.conf, in this order.
    pub nameservers: Vec<IpAddr>,
    /// The first and the last port that the guest's kernel takes for a connection. No other guest has any of them.
    pub ports: (u16, u16),
}

/// The guest's place among the addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet<Address> {
    pub address: Address,
    /// Bits of the address that its neighbours have too.
    pub prefix: u8,
    /// Where packets to all others go. It has to be a neighbour, or an address of the link (fe80::/10).
    pub gateway: Address,
}

/// A Nix string, which may have any bytes. JSON has characters, so each byte becomes the character with its
/// number: ASCII stays the same, and other bytes take two.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) if text.is_ascii() => to.serialize_str(text),
            _ => to.serialize_str(&self.0.iter().copied().map(char::from).collect::<String>()),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_ascii() {
            return Ok(Bytes(text.into_bytes()));
        }
        let bytes: Result<_, _> = text.chars().map(u8::try_from).collect();
        bytes.map(Bytes).map_err(|_| D::Error::custom("a character that stands for no byte"))
    }
}

/// The limits that only the guest can enforce. The host enforces all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLimits {
    /// Most processes and threads at one time. Reaching it ends the build.
    pub processes: u32,
    /// Memory of the build with everything it writes, in MiB. In a VM the size of the VM is the limit.
    pub memory_mib: u32,
}

/// The first frame of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    /// `uname -r`.
    pub kernel: String,
    /// Monotonic clock when the guest's main began, nanoseconds. In a VM: since the kernel started.
    pub init_ns: u64,
    /// The same clock when this frame was written: modules loaded, stream connected.
    pub ready_ns: u64,
    /// [`DRAW`] bytes of the guest's random numbers, which nobody else uses: no two machines draw the same.
    pub draw: Bytes,
}

/// The end of the builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub status: ExitStatus,
    /// The memory limit ended the builder (or one of its processes).
    #[serde(default)]
    pub out_of_memory: bool,
    /// The build reached the process limit and was ended because of it.
    #[serde(default)]
    pub process_limit: bool,
    /// The most memory of the build at one time, in bytes, as far as the guest saw it.
    #[serde(default)]
    pub peak_memory: Option<u64>,
}

/// The status of wait(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Exited(i32),
    Signalled(i32),
}

/// The reason why the guest cannot continue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    /// The action that failed, its object, and the cause.
    pub text: String,
}

/// The kind of a [`Failure`], which decides what is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The builder exited with 0 without creating this output.
    OutputMissing { name: String },
    /// This output cannot be archived: it has a fifo, a socket or a device.
    OutputInvalid { name: String },
    /// The builder's program could not be executed.
    CannotStart,
    /// The sandbox failed: for example a mount, or a missing module.
    Sandbox,
}

/// One frame, body included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub tag: Tag,
    pub body: Vec<u8>,
}

/// A header or a body that breaks the format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("unknown frame tag {0}")]
    UnknownTag(u8),
    #[error("a {tag:?} frame of {length} bytes is over the limit of {limit}", limit = tag.limit())]
    TooLong { tag: Tag, length: u32 },
    #[error("the body of a {tag:?} frame does not parse: {why}")]
    BadBody { tag: Tag, why: String },
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// The five bytes before a body of `length` bytes. `length` must be within the limit of the tag.
pub fn header(tag: Tag, length: usize) -> [u8; HEADER] {
    assert!(length <= tag.limit(), "{tag:?} frame of {length} bytes");
    let length = (length as u32).to_le_bytes();
    [tag as u8, length[0], length[1], length[2], length[3]]
}

/// Checks the five bytes of a header; returns the tag and the length of the body.
pub fn parse_header(header: [u8; HEADER]) -> Result<(Tag, usize), FrameError> {
    let tag = Tag::from_byte(header[0]).ok_or(FrameError::UnknownTag(header[0]))?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    if length as usize > tag.limit() {
        return Err(FrameError::TooLong { tag, length });
    }
    Ok((tag, length as usize))
}

/// A frame with a JSON body.
///
/// Fails if the body exceeds the limit of the tag: the caller's data is too large to send.
pub fn json_frame(tag: Tag, value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(value).map_err(|e| FrameError::BadBody { tag, why: e.to_string() })?;
    if body.len() > tag.limit() {
        return Err(FrameError::TooLong { tag, length: u32::try_from(body.len()).unwrap_or(u32::MAX) });
    }
    let mut frame = header(tag, body.len()).to_vec();
    frame.extend_from_slice(&body);
    Ok(frame)
}

impl Frame {
    /// The body as JSON of type `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.body)
            .map_err(|e| FrameError::BadBody { tag: self.tag, why: bounded(&e.to_string()) })
    }
}

/// At most [`MAX_TEXT`] bytes of `text`, cut between characters.
pub fn bounded(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    let mut end = MAX_TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{} [cut]", &text[..end])
}

/// Cuts a byte stream into frames, whatever the sizes of its reads. Holds at most one frame and one read.
#[derive(Default)]
pub struct Decoder {
    header: [u8; HEADER],
    header_len: usize,
    /// The frame whose body is arriving, and the number of its missing bytes.
    pending: Option<(Frame, usize)>,
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes bytes from the front of `input`, moving it forward, until one frame is complete or `input` is empty.
    ///
    /// After an error the position in the stream is lost; drop the decoder and the stream.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.pending.is_none() {
                let n = input.len().min(HEADER - self.header_len);
                self.header[self.header_len..self.header_len + n].copy_from_slice(&input[..n]);
                self.header_len += n;
                *input = &input[n..];
                if self.header_len < HEADER {
                    return Ok(None);
                }
                self.header_len = 0;
                let (tag, length) = parse_header(self.header)?;
                // The body grows with the bytes that arrive: a header alone allocates nothing.
                self.pending = Some((Frame { tag, body: Vec::new() }, length));
            }
            let Some((frame, lacking)) = &mut self.pending else { unreachable!("set above") };
            let n = input.len().min(*lacking);
            frame.body.extend_from_slice(&input[..n]);
            *lacking -= n;
            *input = &input[n..];
            if *lacking == 0 {
                return Ok(self.pending.take().map(|(frame, _)| frame));
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The bytes of the frame that has begun, as they came. A new decoder that gets them is where this one is.
    pub fn begun(&self) -> Vec<u8> {
        match &self.pending {
            Some((frame, lacking)) => {
                let mut bytes = header(frame.tag, frame.body.len() + lacking).to_vec();
                bytes.extend_from_slice(&frame.body);
                bytes
            }
            None => self.header[..self.header_len].to_vec(),
        }
    }

    /// Whether the stream is between two frames, so that its end would not cut one.
    pub fn is_between_frames(&self) -> bool {
        self.header_len == 0 && self.pending.is_none()
    }
}
