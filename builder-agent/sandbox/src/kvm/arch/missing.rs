//! Stands for an architecture that is not implemented yet.

use super::Architecture;

pub struct Missing;

// The compiler's error for this line is the list of what `arch/<architecture>/` must define.
impl Architecture for Missing {}
