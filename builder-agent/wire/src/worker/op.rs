//! The operations of the worker protocol, in one table. `docs/design/protocols.md` is checked against it.

use super::Version;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpInfo {
    pub op: Op,
    pub number: u64,
    pub name: &'static str,
    /// The first version whose clients send it; [`Version::OLDEST`] also for older ones.
    pub since: Version,
    /// The last version whose clients send it, if later ones do not. May be older than any accepted version:
    /// the table has all operations that Nix's own server still answers.
    pub until: Option<Version>,
    pub body: BodyShape,
    pub answer: Answer,
}

/// The body that follows the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyShape {
    None,
    /// A NAR or a file: framed from 1.25 on, a bare NAR before.
    Dump,
    /// A NAR: framed from 1.23 on, requested in pieces in 1.21 and 1.22, bare before.
    Nar,
    /// Framed: a count, then as many path infos, each with its NAR.
    Items,
    /// Framed: any bytes.
    Framed,
}

/// The form of the answer, after the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    /// The number 1.
    One,
    Bool,
    Paths,
    MaybePath,
    Names,
    PathInfo,
    Added,
    OutputMap,
    BuildResult,
    BuildResults,
    Missing,
    /// A flag, and one info if the flag is set.
    SubstitutableOne,
    SubstitutableMany,
    Roots,
    Garbage,
    Realisation,
    GcRoot,
    /// A bare NAR.
    Nar,
}

macro_rules! ops {
    ($($number:literal $name:ident $since:literal..$($until:literal)? $body:ident $answer:ident,)*) => {
        /// A known operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op {
            $($name = $number,)*
        }

        /// All known operations, by number.
        pub const OPS: &[OpInfo] = &[
            $(OpInfo {
                op: Op::$name,
                number: $number,
                name: stringify!($name),
                since: Version::new($since),
                until: ops!(@until $($until)?),
                body: BodyShape::$body,
                answer: Answer::$answer,
            },)*
        ];

        impl Op {
            /// The operation with this number, if it is known.
            pub fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
    (@until) => { None };
    (@until $until:literal) => { Some(Version::new($until)) };
}

// Numbers: Nix, src/libstore/worker-protocol.hh. Since and until: the version checks in its remote-store.cc.
// 17 stands for any version before the oldest accepted one.
ops! {
    1 IsValidPath 18.. None Bool,
    5 QueryReferences 17..17 None Paths,
    6 QueryReferrers 18.. None Paths,
    7 AddToStore 18.. Dump Added,
    8 AddTextToStore 18..24 None Added,
    9 BuildPaths 18.. None One,
    10 EnsurePath 18.. None One,
    11 AddTempRoot 18.. None One,
    12 AddIndirectRoot 18.. None One,
    13 SyncWithGc 18..32 None One,
    14 FindRoots 18.. None Roots,
    18 QueryDeriver 17..17 None MaybePath,
    19 SetOptions 18.. None Nothing,
    20 CollectGarbage 18.. None Garbage,
    21 QuerySubstitutablePathInfo 17..17 None SubstitutableOne,
    22 QueryDerivationOutputs 18..21 None Paths,
    23 QueryAllValidPaths 18.. None Paths,
    26 QueryPathInfo 18.. None PathInfo,
    28 QueryDerivationOutputNames 18..21 None Names,
    29 QueryPathFromHashPart 18.. None MaybePath,
    30 QuerySubstitutablePathInfos 18.. None SubstitutableMany,
    31 QueryValidPaths 18.. None Paths,
    32 QuerySubstitutablePaths 18.. None Paths,
    33 QueryValidDerivers 18.. None Paths,
    34 OptimiseStore 18.. None One,
    35 VerifyStore 18.. None Bool,
    36 BuildDerivation 18.. None BuildResult,
    37 AddSignatures 18.. None One,
    38 NarFromPath 18.. None Nar,
    39 AddToStoreNar 18.. Nar Nothing,
    40 QueryMissing 19.. None Missing,
    41 QueryDerivationOutputMap 22.. None OutputMap,
    42 RegisterDrvOutput 27.. None Nothing,
    43 QueryRealisation 27.. None Realisation,
    44 AddMultipleToStore 32.. Items Nothing,
    45 AddBuildLog 32.. Framed One,
    46 BuildPathsWithResults 34.. None BuildResults,
    47 AddPermRoot 36.. None GcRoot,
}

impl Op {
    /// Its row of the table.
    pub fn info(self) -> &'static OpInfo {
        // Every `Op` comes from the table, so the search always finds it.
        OPS.iter().find(|info| info.op == self).unwrap_or(&OPS[0])
    }

    /// The name in Nix's `WorkerProto::Op`.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    pub fn number(self) -> u64 {
        self as u64
    }
}
