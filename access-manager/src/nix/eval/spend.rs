//! Charges an evaluation for steps, values, text and depth. Whatever grows is charged before it is made.

use super::{Evaluator, R};
use crate::diag::{Class, Fault, Span};

impl Evaluator<'_> {
    /// Whether a limit is used up for all later evaluations too.
    pub fn is_spent(&self) -> bool {
        self.steps > self.limits.steps || self.values > self.limits.values || self.text > self.limits.text
    }

    pub(in crate::nix) fn step(&mut self, cost: u64) -> R<()> {
        self.steps += cost;
        if self.steps > self.limits.steps {
            return Err(Fault::new(Class::Limit, "the evaluation takes too many steps")
                .expected(format!("at most {} steps", self.limits.steps))
                .hint("a function probably calls itself without end"));
        }
        Ok(())
    }

    pub(in crate::nix) fn pay_values(&mut self, count: usize) -> R<()> {
        self.values += count as u64;
        if self.values > self.limits.values {
            return Err(Fault::new(Class::Limit, "the evaluation makes too many values")
                .expected(format!("at most {} values, list elements and attributes", self.limits.values))
                .hint("a list or set probably grows without end"));
        }
        self.step(count as u64 / 4)
    }

    pub(in crate::nix) fn pay_text(&mut self, bytes: usize) -> R<()> {
        self.text += bytes as u64;
        if self.text > self.limits.text {
            return Err(Fault::new(Class::Limit, "the evaluation makes too much text")
                .expected(format!("at most {} bytes of strings and files in all", self.limits.text))
                .hint("a string probably grows without end"));
        }
        self.step(bytes as u64 / 256)
    }

    pub(super) fn deeper(&mut self, at: Span) -> R<()> {
        self.step(1).map_err(|f| f.at(at))?;
        if self.depth >= self.limits.depth {
            return Err(Fault::new(Class::Limit, "the evaluation is nested too deeply")
                .at(at)
                .expected(format!("at most {} evaluations inside each other", self.limits.depth))
                .hint("a function probably calls itself without end"));
        }
        self.depth += 1;
        Ok(())
    }

    /// Runs `f` one level deeper: for Rust code that recurses into values.
    pub(in crate::nix) fn nested<T>(&mut self, at: Span, f: impl FnOnce(&mut Self) -> R<T>) -> R<T> {
        self.deeper(at)?;
        let result = f(self);
        self.depth -= 1;
        result
    }
}
