//! Values, thunks and scopes.
//!
//! Thunks live in the evaluator's arena and are named by number, so that cyclic values (`rec`, `let`) need no cycle of
//! counted pointers. All are freed with the evaluator.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::ast::{ExprRef, Lambda, Sym};
use super::eval::{Evaluator, R};
use crate::diag::{Fault, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThunkId(pub(super) u32);

#[derive(Clone)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    /// The path is relative to the top of the repository, and normalised.
    Path(Rc<str>),
    List(Rc<Vec<ThunkId>>),
    Attrs(Rc<AttrMap>),
    Lambda(Rc<Closure>),
    Native(Rc<NativeCall>),
}

pub type AttrMap = BTreeMap<Sym, Slot>;

/// An attribute: its value, and the position of its name.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub thunk: ThunkId,
    pub span: Span,
}

pub struct Closure {
    pub(super) lambda: Rc<Lambda>,
    pub(super) env: Env,
}

/// A built-in function with the arguments that it has so far.
pub struct NativeCall {
    pub(super) native: &'static Native,
    pub(super) args: Vec<ThunkId>,
}

pub struct Native {
    pub name: &'static str,
    pub arity: usize,
    pub run: fn(&mut Evaluator, &[ThunkId], Span) -> R<Value>,
}

pub(super) struct Thunk {
    pub span: Span,
    pub state: State,
}

pub(super) enum State {
    Pending(ExprRef, Env),
    /// A call that a built-in function leaves for later, such as one element of `map`.
    Call(ThunkId, Vec<ThunkId>),
    /// A name without a value. Forcing it returns this fault.
    Forbidden(Fault),
    Running,
    Done(Value),
}

/// Scopes from the innermost outwards.
pub(super) type Env = Option<Rc<EnvNode>>;

pub(super) struct EnvNode {
    pub scope: Scope,
    pub parent: Env,
}

pub(super) enum Scope {
    /// Filled after the thunks that refer to it are made.
    Names(RefCell<HashMap<Sym, ThunkId>>),
    With(ThunkId),
}

impl Value {
    pub fn string(text: impl AsRef<str>) -> Value {
        Value::Str(text.as_ref().into())
    }

    /// The kind of the value with its article, for messages: "a list".
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a Boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a floating-point number",
            Value::Str(_) => "a string",
            Value::Path(_) => "a path",
            Value::List(_) => "a list",
            Value::Attrs(_) => "an attribute set",
            Value::Lambda(_) | Value::Native(_) => "a function",
        }
    }

    /// The name that `builtins.typeOf` returns.
    pub fn type_of(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "string",
            Value::Path(_) => "path",
            Value::List(_) => "list",
            Value::Attrs(_) => "set",
            Value::Lambda(_) | Value::Native(_) => "lambda",
        }
    }
}
