//! A pure, bounded evaluator for the part of Nix that rosters are written in.
//!
//! It is lazy as Nix is, and agrees with `nix-instantiate --eval --strict --json` on what both accept
//! (`tests/agree.rs`). The expression is hostile: [`Limits`] bounds the resources that it uses. There are no
//! derivations, no network, no environment and no clock: those builtins exist, and fail with a message that names
//! them.
//!
//! Not here: what a roster looks like ([`crate::roster`]) and where files come from ([`crate::source`]).

mod ast;
mod eval;
mod json;
mod limits;
mod lower;
mod natives;
mod natives_list;
mod natives_text;
mod text;
mod value;

pub use eval::Evaluator;
pub use limits::Limits;
pub use value::{AttrMap, Slot, ThunkId, Value};

use crate::diag::Diagnostic;
use crate::source::Source;

/// Size of the evaluation thread's stack. [`Limits::depth`] levels of the largest frames (those of an unoptimised
/// build) fit in it. It is address space; memory is used only for the part that an evaluation reaches.
const STACK: usize = 1 << 30;

/// Runs `work` with a fresh evaluator over `source`, on a thread whose stack fits [`Limits::depth`].
pub fn with_evaluator<S, T, F>(source: S, limits: Limits, work: F) -> Result<T, Box<Diagnostic>>
where
    S: Source + Send,
    T: Send,
    F: FnOnce(&mut Evaluator) -> Result<T, crate::diag::Fault> + Send,
{
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("evaluator".into())
            .stack_size(STACK)
            .spawn_scoped(scope, move || {
                let mut evaluator = Evaluator::new(&source, limits);
                work(&mut evaluator).map_err(|fault| Box::new(evaluator.resolve(fault)))
            })
            .expect("a thread can be started")
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Evaluates `file` completely and returns what `nix-instantiate --eval --strict --json` prints.
/// A function at the top is called with `{ lib, pkgs, … }` as a NixOS module would be.
pub fn to_json<S: Source + Send>(
    source: S,
    file: &str,
    limits: Limits,
) -> Result<serde_json::Value, Box<Diagnostic>> {
    with_evaluator(source, limits, |evaluator| {
        let value = evaluator.import_file(file)?;
        let value = evaluator.call_module(value)?;
        evaluator.json(&value)
    })
}
