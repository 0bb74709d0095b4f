//! Resources that members share, and their division: threads for work that blocks, memory that requests take, and the pace of uploads when room is scarce.
//!
//! Each piece of work and each charge has an owner, the identity of a member. A member who asks for much makes only
//! their own work wait. Neither part knows what the work is.
//! Not here: which limits a box has (`settings`), and places for builds (`builds::schedule`).

pub mod budget;
pub mod pace;
pub mod threads;
