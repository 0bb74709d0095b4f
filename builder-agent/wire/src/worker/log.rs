//! The log that a client gets while its request runs, and the error of a failed request.

/// The importance of a message (Nix: `Verbosity`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum Verbosity {
    Error = 0,
    Warn = 1,
    Notice = 2,
    Info = 3,
    Talkative = 4,
    Chatty = 5,
    Debug = 6,
    Vomit = 7,
}

/// The kind of an activity (Nix: `ActivityType`; the numbers are those on the wire).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum ActivityKind {
    Unknown = 0,
    CopyPath = 100,
    FileTransfer = 101,
    Realise = 102,
    CopyPaths = 103,
    Builds = 104,
    /// Fields: derivation path, machine name, round, number of rounds.
    Build = 105,
    OptimiseStore = 106,
    VerifyPaths = 107,
    Substitute = 108,
    QueryPathInfo = 109,
    PostBuildHook = 110,
    BuildWaiting = 111,
}

/// The kind of a result (Nix: `ResultType`; the numbers are those on the wire).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum ResultKind {
    FileLinked = 100,
    /// Fields: one line, without its newline.
    BuildLogLine = 101,
    UntrustedPath = 102,
    CorruptedPath = 103,
    /// Fields: the phase's name.
    SetPhase = 104,
    /// Fields: done, expected, running, failed.
    Progress = 105,
    /// Fields: activity kind, expected.
    SetExpected = 106,
    PostBuildLogLine = 107,
}

/// A field of an activity or result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    Int(u64),
    Text(Vec<u8>),
}

impl From<u64> for Field {
    fn from(value: u64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Field {
    fn from(value: &str) -> Self {
        Self::Text(value.as_bytes().to_vec())
    }
}

impl From<String> for Field {
    fn from(value: String) -> Self {
        Self::Text(value.into_bytes())
    }
}

/// An event for the client while a request runs. Owned, so that the task that builds can send it through a
/// channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// Printed by the client as it is. A newline is added.
    Message(Vec<u8>),
    /// Activity ids are chosen by the server and are unique on a connection; 0 as parent means none. Clients
    /// before 1.20 get `text` as a message instead.
    StartActivity {
        id: u64,
        level: Verbosity,
        kind: ActivityKind,
        text: String,
        fields: Vec<Field>,
        parent: u64,
    },
    StopActivity {
        id: u64,
    },
    /// Clients before 1.20 get the line of a `BuildLogLine` as a message; other results are not sent to them.
    Result {
        id: u64,
        kind: ResultKind,
        fields: Vec<Field>,
    },
}

impl LogEvent {
    /// A line for the user.
    pub fn message(text: impl Into<Vec<u8>>) -> Self {
        Self::Message(text.into())
    }

    /// The activity of a build, under which its log lines appear.
    pub fn start_build(id: u64, drv_path: &str) -> Self {
        Self::StartActivity {
            id,
            level: Verbosity::Info,
            kind: ActivityKind::Build,
            text: format!("building '{drv_path}'"),
            fields: vec![drv_path.into(), "".into(), 1.into(), 1.into()],
            parent: 0,
        }
    }

    /// One line of the log of the build with this activity id.
    pub fn build_line(id: u64, line: impl Into<Vec<u8>>) -> Self {
        Self::Result { id, kind: ResultKind::BuildLogLine, fields: vec![Field::Text(line.into())] }
    }

    /// The build with this activity id entered a phase.
    pub fn phase(id: u64, phase: &str) -> Self {
        Self::Result { id, kind: ResultKind::SetPhase, fields: vec![phase.into()] }
    }

    /// The activity has ended.
    pub fn stop(id: u64) -> Self {
        Self::StopActivity { id }
    }
}

/// The error of a failed request, for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub level: Verbosity,
    pub message: String,
    /// Context, outermost first. Not sent to clients before 1.26.
    pub traces: Vec<String>,
}

impl Failure {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { level: Verbosity::Error, message: message.into(), traces: Vec::new() }
    }
}
