//! The reasons for the end of a VM.

/// The guest's request to stop the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    PowerOff,
    Reset,
}

/// The reason for the end of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest requested it, in one of the ways of the platform.
    Guest(Stop),
    /// The guest's processor cannot continue; the architecture's name for that.
    Crashed(&'static str),
    /// KVM could not continue.
    Kvm(String),
    /// It was asked to stand still, and could go on.
    Paused,
}
