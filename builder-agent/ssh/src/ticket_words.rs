//! The words with which a client logs in with a ticket. The configuration that `ticket create` prints has them too.
//!
//! The user name alone decides nothing: a key of a member works with it as with any other user name.

/// The ssh user name.
pub(crate) const USER: &str = "ticket";
/// The variable of the ssh environment that has the token (`SetEnv`).
pub(crate) const VARIABLE: &str = "BARNRAISER_TICKET";
/// The method of keyboard-interactive that asks for nothing: the token comes in the environment (`KbdInteractiveDevices`).
pub(crate) const DEVICE: &str = "env";
