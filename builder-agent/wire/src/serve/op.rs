//! The commands of the serve protocol, in one table. `docs/design/protocols.md` is checked against it.

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpInfo {
    pub op: Op,
    pub number: u64,
    pub name: &'static str,
    /// The clients that send it, in words.
    pub sent: &'static str,
    /// Refused without `--write`.
    pub writes: bool,
    pub body: BodyShape,
    pub answer: Answer,
}

/// The body that follows the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyShape {
    None,
    /// A bare NAR whose size is among the arguments.
    Nar,
    /// An export stream: NARs, each followed by its path info.
    Export,
}

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The number 1, or 0 after a failure.
    One,
    Paths,
    /// Path infos, ended by an empty path.
    PathInfos,
    /// A bare NAR.
    Nar,
    /// An export stream.
    Export,
    /// A status, and a message unless the status is good.
    Status,
    BuildResult,
}

macro_rules! ops {
    ($($number:literal $name:ident $sent:literal $writes:literal $body:ident $answer:ident,)*) => {
        /// A known command.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op {
            $($name = $number,)*
        }

        /// All known commands, by number.
        pub const OPS: &[OpInfo] = &[
            $(OpInfo {
                op: Op::$name,
                number: $number,
                name: stringify!($name),
                sent: $sent,
                writes: $writes,
                body: BodyShape::$body,
                answer: Answer::$answer,
            },)*
        ];

        impl Op {
            /// The command with this number, if it is known.
            pub fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

// Numbers: Nix, src/libstore/serve-protocol.hh. Clients: its legacy-ssh-store.cc, and Hydra's queue runner.
ops! {
    1 QueryValidPaths "all" false None Paths,
    2 QueryPathInfos "all" false None PathInfos,
    3 DumpStorePath "all" false None Nar,
    4 ImportPaths "up to 2.4, and Hydra" true Export One,
    5 ExportPaths "before Nix 2.0" false None Export,
    6 BuildPaths "all" true None Status,
    7 QueryClosure "all" false None Paths,
    8 BuildDerivation "all" true None BuildResult,
    9 AddToStoreNar "2.5 and newer" true Nar One,
}

impl Op {
    /// Its row of the table.
    pub fn info(self) -> &'static OpInfo {
        // Every `Op` comes from the table, so the search always finds it.
        OPS.iter().find(|info| info.op == self).unwrap_or(&OPS[0])
    }

    /// The name in Nix's `ServeProto::Command`.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    pub fn number(self) -> u64 {
        self as u64
    }
}
