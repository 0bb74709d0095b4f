//! What one evaluation may spend. A roster of ten thousand members stays under a fifth of each.

/// Every number is enforced where the resource is spent, and the error names the limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Expressions evaluated, values looked at. Bounds time: ten million take a few seconds.
    pub steps: u64,
    /// Evaluations inside evaluations. Bounds the stack ([`super::with_evaluator`]).
    pub depth: u32,
    /// Values, list elements and attributes ever made; none is freed before the end. About 100 bytes each.
    pub values: u64,
    /// Bytes of text ever made or read: strings, files.
    pub text: u64,
    /// One `.nix` file. The largest shared user lists are a hundredth of it.
    pub source_file: u64,
    /// Any other file: key files hold a handful of lines.
    pub data_file: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            steps: 10_000_000,
            depth: 3_000,
            values: 4_000_000,
            text: 64 << 20,
            source_file: 1 << 20,
            data_file: 256 << 10,
        }
    }
}

/// Brackets, operators and arguments inside each other, in one file. The parser recurses on some of them without a
/// bound of its own, and trees of this depth are walked recursively.
pub const MAX_NESTING: u32 = 1_500;
