//! Limits on the memory and the data that a client can make the agent hold. A client can make each of these large.

/// All arguments of one request together, in bytes. A derivation's environment and the path lists of a large
/// closure stay below a tenth of it; larger data is sent as a body, which is streamed.
pub const MAX_REQUEST_BYTES: u64 = 64 << 20;

/// The part of [`MAX_REQUEST_BYTES`] that every connection may hold without asking its meter. Nearly all requests are
/// smaller.
pub const UNMETERED_BYTES: u64 = 64 << 10;

/// One store path with its directory: `/nix/store/`, 32 + 1 characters of hash part, a name of up to 211.
pub const MAX_STORE_PATH_BYTES: u64 = 11 + 33 + 211;

/// Paths in one list. The largest known closures have a tenth of this.
pub const MAX_PATHS: u64 = 500_000;

/// A name: of a store path, an output, a feature, a setting, a system.
pub const MAX_NAME_BYTES: u64 = 4096;

/// A rendered hash with its algorithm; SHA-512 in base 16 is the longest.
pub const MAX_HASH_BYTES: u64 = 256;

/// A content address with its method.
pub const MAX_CA_BYTES: u64 = 512;

/// Outputs of one derivation, as in a `.drv` file.
pub const MAX_OUTPUTS: u64 = nix::derivation::MAX_OUTPUTS as u64;

/// Arguments of one builder: Linux itself refuses longer lists long before their bytes reach the limit.
pub const MAX_BUILDER_ARGS: u64 = 65_536;

/// Variables in one builder's environment, and settings in one `SetOptions` (a few hundred exist).
pub const MAX_ENV_VARS: u64 = 65_536;

/// Settings a client may send; a few hundred exist.
pub const MAX_SETTINGS: u64 = 4096;

/// One argument, variable or setting. `__json` and `passAsFile` variables can be large; Linux does not see them.
pub const MAX_VALUE_BYTES: u64 = 32 << 20;

/// Signatures on one path.
pub const MAX_SIGNATURES: u64 = 256;

/// One signature: a key name and 88 characters.
pub const MAX_SIGNATURE_BYTES: u64 = 1024;

/// Derivations and paths to build or to query in one request.
pub const MAX_TARGETS: u64 = 100_000;

/// One derived path with its list of outputs.
pub const MAX_DERIVED_PATH_BYTES: u64 = 64 << 10;

/// Steps in one dynamic derivation, as in `x.drv!a!b`. No known client nests two yet; the type is recursive.
pub const MAX_DERIVED_PATH_STEPS: usize = 16;

/// A realisation as JSON.
pub const MAX_REALISATION_BYTES: u64 = 1 << 20;

/// Protocol features a client may list.
pub const MAX_FEATURES: u64 = 256;

/// Paths in one `AddMultipleToStore`.
pub const MAX_ITEMS: u64 = MAX_PATHS;

/// One frame of a framed body. Frames are streamed and never held as a whole; Nix reads this length into 32
/// bits.
pub const MAX_FRAME_BYTES: u64 = u32::MAX as u64;

/// Largest body, unless the server sets another limit.
pub const DEFAULT_MAX_BODY_BYTES: u64 = 64 << 30;

/// Most bytes of a refused body that are read and dropped so that the connection can go on. Current clients
/// stop at the next frame; a client that sends more than this ignores the error.
pub const MAX_DISCARD_BYTES: u64 = 1 << 30;

/// Bytes of one request for data to clients that send on request only (1.21 and 1.22).
pub const TUNNEL_CHUNK_BYTES: u64 = 64 << 10;

/// Nesting depth of a NAR. Nix refuses deeper ones, too.
pub const MAX_NAR_DEPTH: usize = 64;

/// A file name in a NAR: the limit of Linux file systems.
pub const MAX_NAR_NAME_BYTES: u64 = 255;

/// The target of a symbolic link: `PATH_MAX` without its NUL.
pub const MAX_NAR_TARGET_BYTES: u64 = 4095;

/// Input buffer and output buffer of a connection. Fits a frame of Nix's size (32 KiB) with room to pipeline.
pub const BUFFER_BYTES: usize = 64 << 10;

/// One frame of a log from another server, all its strings together. The longest are lines of a builder's
/// output; the agent shows none of them, and nobody would read a line of this length.
pub const MAX_LOG_FRAME_BYTES: u64 = 16 << 20;

/// Fields of one activity or result in a log. Nix sends four at most.
pub const MAX_LOG_FIELDS: u64 = 64;

/// Traces of one error. Nix sends one for each nested call in an expression, and a store evaluates none.
pub const MAX_TRACES: u64 = 10_000;

/// A value quoted in an error.
pub const MAX_QUOTE_BYTES: usize = 120;

/// An error message for the client.
pub const MAX_ERROR_BYTES: usize = 64 << 10;
