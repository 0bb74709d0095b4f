//! The evaluator: expressions to values, thunks forced once, every step paid for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::ast::*;
use super::limits::Limits;
use super::lower;
use super::natives;
use super::value::*;
use crate::diag::{Class, Diagnostic, Fault, Files, Span, did_you_mean, quoted};
use crate::source::{self, Node, ResolveError, Source, SourceError};

pub type R<T> = Result<T, Fault>;

/// `toString ./x` must give text that can become a path again, and no real path starts like this.
pub(super) const TOP: &str = "/<repository>";

/// The file that holds our `lib`; messages point at its caller instead.
const LIB_FILE: u32 = 0;
const LIB_TEXT: &str = include_str!("lib.nix");

pub struct Evaluator<'s> {
    source: &'s dyn Source,
    limits: Limits,
    thunks: Vec<Thunk>,
    files: Files,
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

    // --- paying for things -------------------------------------------------------------------------------------

    pub(super) fn step(&mut self, cost: u64) -> R<()> {
        self.steps += cost;
        if self.steps > self.limits.steps {
            return Err(Fault::new(Class::Limit, "the evaluation takes too many steps")
                .expected(format!("at most {} steps", self.limits.steps))
                .hint("a function probably calls itself without end"));
        }
        Ok(())
    }

    pub(super) fn pay_values(&mut self, count: usize) -> R<()> {
        self.values += count as u64;
        if self.values > self.limits.values {
            return Err(Fault::new(Class::Limit, "the evaluation makes too many values")
                .expected(format!("at most {} values, list elements and attributes", self.limits.values))
                .hint("a list or set probably grows without end"));
        }
        self.step(count as u64 / 4)
    }

    pub(super) fn pay_text(&mut self, bytes: usize) -> R<()> {
        self.text += bytes as u64;
        if self.text > self.limits.text {
            return Err(Fault::new(Class::Limit, "the evaluation makes too much text")
                .expected(format!("at most {} bytes of strings and files in all", self.limits.text))
                .hint("a string probably grows without end"));
        }
        self.step(bytes as u64 / 256)
    }

    fn deeper(&mut self, at: Span) -> R<()> {
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
    pub(super) fn nested<T>(&mut self, at: Span, f: impl FnOnce(&mut Self) -> R<T>) -> R<T> {
        self.deeper(at)?;
        let result = f(self);
        self.depth -= 1;
        result
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

    /// Where the value's expression is written.
    pub fn span(&self, id: ThunkId) -> Span {
        self.thunks[id.0 as usize].span
    }

    /// The position to blame for a value: its own, unless that is inside our `lib`.
    pub fn blame(&self, id: ThunkId, otherwise: Span) -> Span {
        let span = self.span(id);
        if span.file == LIB_FILE { otherwise } else { span }
    }

    /// The value of a thunk, computed at most once. `at` is who wants it.
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
        // A fault raised without a position (a limit, a built-in) belongs to the innermost expression.
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

    /// What `${value}` puts into a string.
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

    // --- names -------------------------------------------------------------------------------------------------

    fn lookup(&mut self, name: &Sym, env: &Env, at: Span) -> R<ThunkId> {
        let mut walked = 0u64;
        let mut scope = env.as_deref();
        while let Some(node) = scope {
            walked += 1;
            if let Scope::Names(names) = &node.scope
                && let Some(id) = names.borrow().get(name)
            {
                return Ok(*id);
            }
            scope = node.parent.as_deref();
        }
        self.step(walked / 16)?;
        // Names that are written out win over every `with`, then the innermost `with` wins.
        let mut scope = env.clone();
        let mut with_seen = false;
        while let Some(node) = scope {
            if let Scope::With(set) = node.scope {
                with_seen = true;
                let value = self.force(set, at)?;
                let Value::Attrs(map) = value else {
                    return Err(wrong_type(
                        "what stands after `with`",
                        "an attribute set",
                        &value,
                        self.blame(set, at),
                    ));
                };
                if let Some(slot) = map.get(name) {
                    return Ok(slot.thunk);
                }
            }
            scope = node.parent.clone();
        }
        let fault = Fault::new(Class::Undefined, format!("{} is not defined", quoted(name))).at(at);
        Err(match self.nearest_name(name, env) {
            Some(near) => fault.hint(format!("did you mean {}?", quoted(&near))),
            None if &**name == "lib" || &**name == "pkgs" => {
                fault.hint(format!("start the file with `{{ {name}, ... }}:`"))
            }
            None if with_seen => fault.hint("no `with` around it has such an attribute either"),
            None => {
                fault.hint("text needs quotes, and a name must be defined with `let … in`, or by an argument")
            }
        })
    }

    fn nearest_name(&self, name: &str, env: &Env) -> Option<String> {
        let mut scope = env.as_deref();
        while let Some(node) = scope {
            if let Scope::Names(names) = &node.scope {
                let names = names.borrow();
                if let Some(near) = did_you_mean(name, names.keys().map(|k| &**k)) {
                    return Some(near.to_owned());
                }
            }
            scope = node.parent.as_deref();
        }
        None
    }

    /// Makes the attributes of a set literal; also the scope its recursive parts see.
    fn attr_set(&mut self, set: &AttrSet, env: &Env) -> R<(AttrMap, Env)> {
        self.pay_values(set.known.len())?;
        let mut map = AttrMap::new();
        let inner = if set.recursive {
            let names = Scope::Names(RefCell::new(HashMap::with_capacity(set.known.len())));
            Some(Rc::new(EnvNode { scope: names, parent: env.clone() }))
        } else {
            env.clone()
        };
        for (name, attr) in &set.known {
            let thunk = self.delay(&attr.value, if attr.outer { env } else { &inner })?;
            map.insert(name.clone(), Slot { thunk, span: attr.span });
        }
        if set.recursive
            && let Some(node) = &inner
            && let Scope::Names(names) = &node.scope
        {
            names.borrow_mut().extend(map.iter().map(|(name, slot)| (name.clone(), slot.thunk)));
        }
        for (name, value) in &set.computed {
            let name_value = self.eval(name, &inner)?;
            let key = match name_value {
                Value::Str(s) => s,
                // Nix: an attribute whose computed name is null is left out.
                Value::Null => continue,
                other => return Err(wrong_type("an attribute's name", "a string", &other, name.span)),
            };
            let thunk = self.delay(value, &inner)?;
            if let Some(old) = map.insert(key.clone(), Slot { thunk, span: name.span }) {
                return Err(Fault::new(Class::Syntax, format!("{} is defined twice", quoted(&key)))
                    .at(name.span)
                    .note("the first one is here", Some(old.span)));
            }
        }
        Ok((map, inner))
    }

    fn name_of(&mut self, name: &Name, env: &Env) -> R<(Sym, Span)> {
        match name {
            Name::Known(sym, span) => Ok((sym.clone(), *span)),
            Name::Computed(e) => match self.eval(e, env)? {
                Value::Str(s) => Ok((s, e.span)),
                other => Err(wrong_type("an attribute's name", "a string", &other, e.span)),
            },
        }
    }

    /// Follows `.a.b.c` to the last attribute without needing its value; the inner error is for `or` and `?`.
    fn walk(&mut self, base: Value, path: &[Name], env: &Env, at: Span) -> R<Result<ThunkId, Missing>> {
        let mut value = base;
        let mut names = path.iter().peekable();
        while let Some(name) = names.next() {
            let (name, span) = self.name_of(name, env)?;
            let found = match &value {
                Value::Attrs(map) => map.get(&name).map(|slot| slot.thunk),
                _ => None,
            };
            match found {
                None => return Ok(Err(Missing { inside: value, name, span })),
                Some(id) if names.peek().is_none() => return Ok(Ok(id)),
                Some(id) => value = self.force(id, at)?,
            }
        }
        Err(Fault::new(Class::Syntax, "an attribute name is missing").at(at))
    }

    fn select(
        &mut self,
        base: &ExprRef,
        path: &[Name],
        or: Option<&ExprRef>,
        env: &Env,
        span: Span,
    ) -> R<Value> {
        let set = self.eval(base, env)?;
        match (self.walk(set, path, env, span)?, or) {
            (Ok(last), _) => self.force(last, span),
            (Err(_), Some(or)) => self.eval(or, env),
            (Err(Missing { inside: Value::Attrs(map), name, span: at }), None) => {
                let fault =
                    Fault::new(Class::Undefined, format!("there is no attribute {}", quoted(&name))).at(at);
                let near = did_you_mean(&name, map.keys().map(|k| &**k));
                Err(match (near, &base.kind) {
                    (Some(near), _) => fault.hint(format!("did you mean {}?", quoted(near))),
                    (_, Kind::Var(v)) if &**v == "pkgs" => fault
                        .expected("`pkgs.lib`, the only part of `pkgs` that exists here")
                        .hint("packages cannot be built or looked into while the roster is read"),
                    (_, Kind::Var(v)) if &**v == "lib" || &**v == "builtins" => fault.hint(
                        "only the functions that rosters commonly use are known here; see docs/roster.md",
                    ),
                    _ => fault.hint("add it, or give a default with `or`"),
                })
            }
            (Err(Missing { inside: value, name, span: at }), None) => {
                let what = format!("what {} is taken from", quoted(&name));
                Err(wrong_type(&what, "an attribute set", &value, at))
            }
        }
    }

    // --- calls -------------------------------------------------------------------------------------------------

    pub(super) fn call_thunk(&mut self, f: ThunkId, args: &[ThunkId], at: Span) -> R<Value> {
        let mut value = self.force(f, at)?;
        for arg in args {
            value = self.call(value, *arg, at)?;
        }
        Ok(value)
    }

    pub(super) fn call(&mut self, f: Value, arg: ThunkId, at: Span) -> R<Value> {
        let result = match f {
            Value::Lambda(closure) => self.call_lambda(&closure, arg, at),
            Value::Native(call) => {
                let mut args = call.args.clone();
                args.push(arg);
                if args.len() == call.native.arity {
                    self.deeper(at)?;
                    let result = (call.native.run)(self, &args, at);
                    self.depth -= 1;
                    result
                } else {
                    self.pay_values(1)?;
                    Ok(Value::Native(Rc::new(NativeCall { native: call.native, args })))
                }
            }
            Value::Attrs(map) if map.contains_key("__functor") => {
                let functor = map["__functor"].thunk;
                let this = self.done(Value::Attrs(map), at)?;
                // A functor may give itself again: without an expression in between, nothing else counts the levels.
                self.nested(at, |ev| ev.call_thunk(functor, &[this, arg], at))
            }
            other => Err(Fault::new(Class::Type, format!("{} is called as a function", other.kind()))
                .at(at)
                .expected("a function")
                .found(other.kind())
                .hint("a `;` or an operator may be missing, or elements of a list need parentheses")),
        };
        result.map_err(|fault| point_out_of_lib(fault, at))
    }

    fn call_lambda(&mut self, closure: &Closure, arg: ThunkId, at: Span) -> R<Value> {
        let mut names = HashMap::new();
        let (formals, open, whole) = match &closure.lambda.param {
            Param::Name(name) => {
                names.insert(name.clone(), arg);
                let env =
                    Some(Rc::new(EnvNode { scope: Scope::Names(names.into()), parent: closure.env.clone() }));
                return self.eval(&closure.lambda.body, &env);
            }
            Param::Formals { formals, open, whole } => (formals, *open, whole),
        };
        let value = self.force(arg, at)?;
        let Value::Attrs(given) = value else {
            return Err(wrong_type(
                "the argument of this function",
                "an attribute set",
                &value,
                self.blame(arg, at),
            ));
        };
        let node = Rc::new(EnvNode { scope: Scope::Names(names.into()), parent: closure.env.clone() });
        let Scope::Names(scope) = &node.scope else { unreachable!("made on the line above") };
        let env = Some(node.clone());
        for formal in formals {
            let thunk = match (given.get(&formal.name), &formal.default) {
                (Some(slot), _) => slot.thunk,
                (None, Some(default)) => self.delay(default, &env)?,
                (None, None) => {
                    let name = quoted(&formal.name);
                    return Err(Fault::new(
                        Class::Type,
                        format!("this function is called without its argument {name}"),
                    )
                    .at(at));
                }
            };
            scope.borrow_mut().insert(formal.name.clone(), thunk);
        }
        if let Some(whole) = whole {
            scope.borrow_mut().insert(whole.clone(), arg);
        }
        if !open && let Some(extra) = given.keys().find(|k| formals.iter().all(|f| f.name != **k)) {
            let known: Vec<&str> = formals.iter().map(|f| &*f.name).collect();
            return Err(Fault::new(Class::Type, format!("this function has no argument {}", quoted(extra)))
                .at(at)
                .expected(crate::diag::one_of(&known))
                .found(quoted(extra)));
        }
        self.eval(&closure.lambda.body, &env)
    }

    /// Calls `value`, if it is a function, the way a NixOS module is called: with `lib`, `pkgs.lib`, and names that
    /// exist but may not be used.
    pub fn call_module(&mut self, value: Value) -> R<Value> {
        let Value::Lambda(closure) = &value else { return Ok(value) };
        let Param::Formals { formals, .. } = &closure.lambda.param else {
            return Err(Fault::new(Class::Roster, "the file is a function of one argument")
                .at(closure.lambda.body.span)
                .expected("a set or list of users, or a function such as `{ lib, ... }:`")
                .found("a function of one plain argument"));
        };
        let at = closure.lambda.body.span;
        let mut map = AttrMap::new();
        let wanted: Vec<(Sym, bool)> =
            formals.iter().map(|f| (f.name.clone(), f.default.is_some())).collect();
        let slot = |thunk| Slot { thunk, span: at };
        map.insert("lib".into(), slot(self.lib));
        let pkgs = Value::Attrs(Rc::new(AttrMap::from([("lib".into(), slot(self.lib))])));
        let pkgs = self.done(pkgs, at)?;
        map.insert("pkgs".into(), slot(pkgs));
        for (name, has_default) in wanted {
            if !has_default && !map.contains_key(&name) {
                let fault = Fault::new(
                    Class::Unsupported,
                    format!("{} is not available here", quoted(&name)),
                )
                .expected("`lib` (or `pkgs.lib`); the roster is read on its own, outside of a NixOS system")
                .hint("write the value out, or move it into a file of this repository and `import` that");
                let thunk = self.alloc(at, State::Forbidden(fault));
                map.insert(name, slot(thunk));
            }
        }
        // A module without `...` gets exactly what it names.
        if let Param::Formals { open: false, formals, .. } = &closure.lambda.param {
            map.retain(|name, _| formals.iter().any(|f| f.name == *name));
        }
        let args = self.done(Value::Attrs(Rc::new(map)), at)?;
        self.call(value.clone(), args, at)
    }

    // --- files -------------------------------------------------------------------------------------------------

    /// Finds `path` in the repository, links followed. `None`: there is no such thing.
    pub fn find(&mut self, path: &str) -> R<Option<(String, Node)>> {
        self.step(10)?;
        source::resolve(self.source, path).map_err(|e| path_fault(path, &e))
    }

    pub(super) fn list(&mut self, path: &str) -> R<Vec<(String, Node)>> {
        let names = self.source.list(path).map_err(|e| path_fault(path, &e.into()))?;
        self.pay_values(names.len())?;
        Ok(names)
    }

    /// The text of a regular file (links followed); gives its real path too.
    pub fn read(&mut self, path: &str, limit: u64) -> R<(String, Rc<str>)> {
        let missing = || {
            Fault::new(Class::File, format!("the file {} does not exist", quoted(path)))
                .hint("paths are relative to the file that names them; is it committed?")
        };
        let (real, node) = self.find(path)?.ok_or_else(missing)?;
        match node {
            Node::File => {}
            Node::Directory => {
                return Err(Fault::new(Class::File, format!("{} is a directory", quoted(path)))
                    .expected("a file")
                    .found("a directory"));
            }
            Node::Symlink(_) => return Err(missing()),
            Node::Other(what) => {
                return Err(Fault::new(Class::File, format!("{} cannot be read", quoted(path)))
                    .expected("a file")
                    .found(what));
            }
        }
        let bytes = self.source.read(&real, limit).map_err(|e| match e {
            SourceError::TooLarge { limit } => {
                Fault::new(Class::Limit, format!("the file {} is too large", quoted(path)))
                    .expected(format!("at most {limit} bytes"))
            }
            e => path_fault(path, &e.into()),
        })?;
        self.pay_text(bytes.len())?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok((real, text.into())),
            Err(_) => Err(Fault::new(Class::File, format!("the file {} is not text", quoted(path)))
                .expected("UTF-8 text")
                .found("other bytes")
                .hint("UTF-16 from Windows looks like this; save it as UTF-8")),
        }
    }

    pub(super) fn read_data(&mut self, path: &str) -> R<Rc<str>> {
        let limit = self.limits.data_file;
        Ok(self.read(path, limit)?.1)
    }

    /// A key file: its text, and its number for positions.
    pub fn read_for_positions(&mut self, path: &str) -> R<(u32, Rc<str>)> {
        let limit = self.limits.data_file;
        let (real, text) = self.read(path, limit)?;
        Ok((self.add_file(&real, text.clone()), text))
    }

    fn add_file(&mut self, path: &str, text: Rc<str>) -> u32 {
        self.directories.push(source::parent(path).to_owned());
        self.files.add(path, text)
    }

    /// The value of the `.nix` file at `path`, evaluated once.
    pub fn import_file(&mut self, path: &str) -> R<Value> {
        let path = match self.find(path)? {
            Some((real, Node::Directory)) if real.is_empty() => "default.nix".to_owned(),
            Some((real, Node::Directory)) => format!("{real}/default.nix"),
            _ => path.to_owned(),
        };
        let limit = self.limits.source_file;
        if let Some(id) = self.imports.get(&path) {
            let id = *id;
            let at = self.span(id);
            return self.force(id, at);
        }
        let (real, text) = self.read(&path, limit)?;
        let file = self.add_file(&real, text.clone());
        let expr = lower::parse(file, &text)?;
        let env = self.base.clone();
        let span = expr.span;
        let id = self.alloc(span, State::Pending(expr, env));
        self.imports.insert(path, id);
        self.force(id, span)
    }

    /// A span of a file that was read.
    pub fn text_at(&self, file: u32) -> &str {
        self.files.text(file)
    }

    pub fn resolve(&self, fault: Fault) -> Diagnostic {
        fault.resolve(&self.files, LIB_FILE)
    }

    /// A resolved position in words, for warnings.
    pub fn place(&self, span: Span) -> String {
        match self.files.place(span, false) {
            Some(p) if span.file != LIB_FILE => format!("{}:{}:{}", p.file, p.line, p.column),
            _ => "users.nix".into(),
        }
    }
}

/// Where an attribute path ended early.
struct Missing {
    inside: Value,
    name: Sym,
    span: Span,
}

/// A fault inside our `lib` is the fault of whoever called it.
fn point_out_of_lib(fault: Fault, at: Span) -> Fault {
    match fault.span() {
        Some(span) if span.file != LIB_FILE => fault,
        _ => fault.at(at),
    }
}

pub(super) fn wrong_type(what: &str, expected: &str, found: &Value, at: Span) -> Fault {
    Fault::new(Class::Type, format!("{what} must be {expected}"))
        .at(at)
        .expected(expected)
        .found(found.kind())
}

pub(super) fn path_fault(path: &str, error: &ResolveError) -> Fault {
    match error {
        ResolveError::Escapes => {
            Fault::new(Class::Outside, format!("the path {} leaves the repository", quoted(path)))
                .expected("a path inside this repository")
                .hint("move the file into the repository and name it relative to this file")
        }
        ResolveError::LinkEscapes { link, target } => {
            Fault::new(Class::Outside, format!("the path {} leaves the repository", quoted(path)))
                .expected("a path inside this repository")
                .found(format!("the symbolic link {} to {}", quoted(link), quoted(target)))
                .hint("replace the link by the file it points to")
        }
        other => Fault::new(Class::File, format!("the file {} cannot be read", quoted(path)))
            .found(other.to_string()),
    }
}
