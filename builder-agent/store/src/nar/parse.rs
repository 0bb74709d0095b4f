//! tbd
/// A NAR that is not canonical, or larger than a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid NAR at byte {at}: {why}")]
pub struct ParseError {
    /// Offset in the NAR of the first byte that does not fit.
    pub at: u64,
    /// What was expected and what came.
    pub why: String,
}
