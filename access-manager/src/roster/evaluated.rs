//! The result of evaluating a roster: members, mistakes of those who are left out, warnings.

use std::fmt;

use super::{LeftOut, Member};
use crate::diag::{Diagnostic, Place};

/// A roster that was accepted, for those who have no mistake in their own lines.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Sorted by name.
    pub members: Vec<Member>,
    /// In the order of the file.
    pub mistakes: Vec<Mistake>,
    /// Accepted entries that are probably not meant.
    pub warnings: Vec<Warning>,
}

/// One line, with the place if one is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub place: Option<Place>,
    pub text: String,
}

impl From<String> for Warning {
    fn from(text: String) -> Warning {
        Warning { place: None, text }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// A mistake in the entry of one member.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// The member's name, or which entry of a list it is.
    pub name: String,
    /// Whether it keeps the member out. If not, the part that is wrong does not count.
    pub left_out: bool,
    pub diagnostic: Box<Diagnostic>,
}

impl Evaluated {
    /// For the check of a pull request: any mistake refuses the roster. The error is the first one.
    pub fn strict(self) -> Result<Evaluated, Box<Diagnostic>> {
        match self.mistakes.into_iter().next() {
            Some(mistake) => Err(mistake.diagnostic),
            None => Ok(Evaluated { mistakes: Vec::new(), ..self }),
        }
    }

    /// The members who are left out, as `roster.json` lists them.
    pub fn left_out(&self) -> Vec<LeftOut> {
        let out = self.mistakes.iter().filter(|mistake| mistake.left_out);
        out.map(|mistake| LeftOut::new(&mistake.name, &mistake.diagnostic.line())).collect()
    }
}
