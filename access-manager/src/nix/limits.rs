//! Limits of one evaluation. A roster of ten thousand members uses less than a fifth of each.

/// Each limit is enforced where the resource is used, and the error names the limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Expressions that are evaluated and values that are examined. Bounds the time: ten million take a few seconds.
    pub steps: u64,
    /// Evaluations nested in each other. Bounds the stack ([`super::with_evaluator`]).
    pub depth: u32,
    /// Values, list elements and attributes that are made; none is freed before the end. Each takes about 100 bytes.
    pub values: u64,
    /// Bytes of text that are made or read: strings and files.
    pub text: u64,
    /// Bytes of one `.nix` file. The largest known user lists have a hundredth of that.
    pub source_file: u64,
    /// Bytes of any other file. A key file has a few lines.
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

/// Greatest depth of brackets, operators and arguments in one file. The parser recurses on some of them without a
/// bound, and the evaluator walks the tree recursively.
pub const MAX_NESTING: u32 = 1_500;
