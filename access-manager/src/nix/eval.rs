//! The evaluator: turns expressions into values, computes each thunk at most once, and charges for every step.

mod calls;
mod files;
mod names;
mod spend;

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::ast::*;
use super::limits::Limits;
use super::lower;
use super::natives;
use super::value::*;
use crate::diag::{Class, Fault, Files, Span};
use crate::source::{self, Source};

use calls::point_out_of_lib;
pub(super) use files::path_fault;

pub type R<T> = Result<T, Fault>;

/// The prefix of the text that `toString ./x` returns. The text can become a path again, since no other path has it.
pub(super) const TOP: &str = "/<repository>";

/// The number of the file with the built-in `lib`. Messages show the position of its caller instead.
const LIB_FILE: u32 = 0;
const LIB_TEXT: &str = include_str!("lib.nix");

pub struct Evaluator<'s> {
    source: &'s dyn Source,
    limits: Limits,
    thunks: Vec<Thunk>,
    files: Files,
    /// Real paths of the files that were read.
    read: BTreeSet<String>,
    imports: HashMap<String, ThunkId>,
    /// Directory of each file, by file number, for relative paths.
    directories: Vec<String>,
    base: Env,
    lib: ThunkId,
    steps: u64,
    values: u64,
    text: u64,
    depth: u32,
}

impl<'s> Evaluator<'s> {
    pub fn new(source: &'s dyn Source, limits: Limits) -> Evaluator<'s> {
        let mut this = Evaluator {
            source,
            limits,
            thunks: Vec::new(),
            files: Files::default(),
            read: BTreeSet::new(),
            imports: HashMap::new(),
            directories: vec![String::new()],
            base: None,
            lib: ThunkId(0),
            steps: 0,
            values: 0,
            text: 0,
            depth: 0,
        };
        this.files.add("<lib>", LIB_TEXT.into());
        this.base = natives::base_scope(&mut this);
        let lib = lower::parse(LIB_FILE, LIB_TEXT).expect("our own lib parses");
        let env = natives::lib_scope(&mut this);
        this.lib = this.alloc(lib.span, State::Pending(lib, env));
        this
    }

    // --- thunks ------------------------------------------------------------------------------------------------

    pub(super) fn alloc(&mut self, span: Span, state: State) -> ThunkId {
        self.thunks.push(Thunk { span, state });
        ThunkId((self.thunks.len() - 1) as u32)
    }

    pub(super) fn delay(&mut self, expr: &ExprRef, env: &Env) -> R<ThunkId> {
        self.pay_values(1)?;
        Ok(self.alloc(expr.span, State::Pending(expr.clone(), env.clone())))
    }

    pub(super) fn delay_call(&mut self, f: ThunkId, args: Vec<ThunkId>, span: Span) -> R<ThunkId> {
        self.pay_values(1)?;
        Ok(self.alloc(span, State::Call(f, args)))
    }

    pub(super) fn done(&mut self, value: Value, span: Span) -> R<ThunkId> {
        self.pay_values(1)?;
        Ok(self.alloc(span, State::Done(value)))
    }

    /// The position of the value's expression.
    pub fn span(&self, id: ThunkId) -> Span {
        self.thunks[id.0 as usize].span
    }

    /// The position that messages about a value show: its own, or `otherwise` if its own is inside `lib`.
    pub fn blame(&self, id: ThunkId, otherwise: Span) -> Span {
        let span = self.span(id);
        if span.file == LIB_FILE { otherwise } else { span }
    }

    /// The value of a thunk, computed at most once. `at` is the expression that needs it.
    pub fn force(&mut self, id: ThunkId, at: Span) -> R<Value> {
        let index = id.0 as usize;
        if let State::Done(value) = &self.thunks[index].state {
            return Ok(value.clone());
        }
        let span = self.thunks[index].span;
        self.deeper(if span.file == LIB_FILE { at } else { span })?;
        let result = match std::mem::replace(&mut self.thunks[index].state, State::Running) {
            State::Done(value) => Ok(value),
            State::Running => {
                Err(Fault::new(Class::Recursion, "this value needs itself: infinite recursion")
                    .at(if span.file == LIB_FILE { at } else { span })
                    .hint(
                        "break the cycle: one of the names on the right leads back to the one being defined",
                    ))
            }
            State::Forbidden(fault) => {
                self.thunks[index].state = State::Forbidden(fault.clone());
                Err(fault)
            }
            State::Pending(expr, env) => {
                let result = self.eval(&expr, &env);
                if result.is_err() {
                    self.thunks[index].state = State::Pending(expr, env);
                }
                result
            }
            State::Call(f, args) => {
                let result = self.call_thunk(f, &args, span);
                if result.is_err() {
                    self.thunks[index].state = State::Call(f, args);
                }
                result
            }
        };
        self.depth -= 1;
        let value = result.map_err(|fault| point_out_of_lib(fault, at))?;
        self.thunks[index].state = State::Done(value.clone());
        Ok(value)
    }

    // --- expressions -------------------------------------------------------------------------------------------

    fn eval(&mut self, expr: &ExprRef, env: &Env) -> R<Value> {
        self.deeper(expr.span)?;
        let result = self.eval_inner(expr, env);
        self.depth -= 1;
        // A fault raised without a position (a limit, a built-in) gets the position of the innermost expression.
        result.map_err(|fault| if fault.span().is_none() { fault.at(expr.span) } else { fault })
    }

    fn eval_inner(&mut self, expr: &ExprRef, env: &Env) -> R<Value> {
        let span = expr.span;
        Ok(match &expr.kind {
            Kind::Int(i) => Value::Int(*i),
            Kind::Float(f) => Value::Float(*f),
            Kind::Str(s) => Value::Str(s.clone()),
            Kind::Interpolated(parts) => self.interpolate(parts, env)?,
            Kind::Path(parts) => self.path_literal(parts, env, span)?,
            Kind::Var(name) => {
                let thunk = self.lookup(name, env, span)?;
                self.force(thunk, span)?
            }
            Kind::List(items) => {
                let items = items.iter().map(|e| self.delay(e, env)).collect::<R<Vec<_>>>()?;
                Value::List(Rc::new(items))
            }
            Kind::Attrs(set) => Value::Attrs(Rc::new(self.attr_set(set, env)?.0)),
            Kind::Let(set, body) => {
                let inner = self.attr_set(set, env)?.1;
                self.eval(body, &inner)?
            }
            Kind::Lambda(lambda) => {
                self.pay_values(1)?;
                Value::Lambda(Rc::new(Closure { lambda: lambda.clone(), env: env.clone() }))
            }
            Kind::Call(f, arg) => {
                let f = self.eval(f, env)?;
                let arg = self.delay(arg, env)?;
                self.call(f, arg, span)?
            }
            Kind::If(condition, yes, no) => {
                let yes = if self.eval_bool(condition, env, "the condition of `if`")? { yes } else { no };
                self.eval(yes, env)?
            }
            Kind::With(set, body) => {
                let thunk = self.delay(set, env)?;
                let inner = Some(Rc::new(EnvNode { scope: Scope::With(thunk), parent: env.clone() }));
                self.eval(body, &inner)?
            }
            Kind::Assert(condition, body) => {
                if !self.eval_bool(condition, env, "the condition of `assert`")? {
                    return Err(Fault::new(Class::Thrown, "this assertion failed").at(condition.span));
                }
                self.eval(body, env)?
            }
            Kind::Not(e) => Value::Bool(!self.eval_bool(e, env, "the operand of `!`")?),
            Kind::Negate(e) => {
                let value = self.eval(e, env)?;
                natives::negate(value, e.span)?
            }
            Kind::Select { base, path, or } => self.select(base, path, or.as_ref(), env, span)?,
            Kind::Has { base, path } => {
                let base = self.eval(base, env)?;
                Value::Bool(self.walk(base, path, env, span)?.is_ok())
            }
            Kind::Binary(op, left, right) => self.binary(*op, left, right, env, span)?,
        })
    }

    fn eval_bool(&mut self, expr: &ExprRef, env: &Env, what: &str) -> R<bool> {
        match self.eval(expr, env)? {
            Value::Bool(b) => Ok(b),
            other => Err(wrong_type(what, "true or false", &other, expr.span)),
        }
    }

    fn binary(&mut self, op: Op, left: &ExprRef, right: &ExprRef, env: &Env, span: Span) -> R<Value> {
        match op {
            Op::And => {
                let both = self.eval_bool(left, env, "the left side of `&&`")?
                    && self.eval_bool(right, env, "the right side of `&&`")?;
                Ok(Value::Bool(both))
            }
            Op::Or => {
                let any = self.eval_bool(left, env, "the left side of `||`")?
                    || self.eval_bool(right, env, "the right side of `||`")?;
                Ok(Value::Bool(any))
            }
            Op::Implies => {
                let holds = !self.eval_bool(left, env, "the left side of `->`")?
                    || self.eval_bool(right, env, "the right side of `->`")?;
                Ok(Value::Bool(holds))
            }
            _ => {
                let a = self.eval(left, env)?;
                let b = self.eval(right, env)?;
                natives::operator(self, op, (a, left.span), (b, right.span), span)
            }
        }
    }

    fn interpolate(&mut self, parts: &[Part], env: &Env) -> R<Value> {
        let mut out = String::new();
        for part in parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expr(e) => {
                    let value = self.eval(e, env)?;
                    out.push_str(&self.interpolated(&value, e.span)?);
                }
            }
        }
        self.pay_text(out.len())?;
        Ok(Value::string(out))
    }

    /// The text that `${value}` adds to a string.
    pub(super) fn interpolated(&mut self, value: &Value, at: Span) -> R<Rc<str>> {
        match value {
            Value::Str(s) => Ok(s.clone()),
            Value::Path(_) => Err(Fault::new(Class::Unsupported, "a path cannot be put into a string here")
                .at(at)
                .expected("a string")
                .found("a path, which Nix would copy into the store")
                .hint("keep it a path, as in `./keys + \"/alice.pub\"`, or use `builtins.readFile`")),
            Value::Attrs(map) if map.contains_key("__toString") => {
                let value = Value::Attrs(map.clone());
                self.call_to_string(&value, at)
            }
            other => {
                let fault = wrong_type("what is put into a string", "a string", other, at);
                Err(match other {
                    Value::Int(_) | Value::Float(_) => fault.hint("use `${toString x}`"),
                    _ => fault,
                })
            }
        }
    }

    fn path_literal(&mut self, parts: &[Part], env: &Env, span: Span) -> R<Value> {
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(t) => text.push_str(t),
                Part::Expr(e) => {
                    let value = self.eval(e, env)?;
                    match &value {
                        Value::Str(s) => text.push_str(s),
                        other => {
                            return Err(wrong_type("what is put into a path", "a string", other, e.span));
                        }
                    }
                }
            }
        }
        self.pay_text(text.len())?;
        let dir = self.directories[span.file as usize].clone();
        match source::join(&dir, &text) {
            Ok(path) => Ok(Value::Path(path.into())),
            Err(e) => Err(path_fault(&text, &e).at(span)),
        }
    }
}

pub(super) fn wrong_type(what: &str, expected: &str, found: &Value, at: Span) -> Fault {
    Fault::new(Class::Type, format!("{what} must be {expected}"))
        .at(at)
        .expected(expected)
        .found(found.kind())
}
