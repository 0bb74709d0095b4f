//! The built-in functions: which names exist, operators, equality and order.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::Rc;

use super::ast::Op;
use super::eval::{Evaluator, R, TOP, wrong_type};
use super::value::*;
use super::{natives_list, natives_text};
use crate::diag::{Class, Fault, Span};

/// Every built-in function. There is no other list of them.
fn table() -> impl Iterator<Item = &'static Native> {
    NATIVES.iter().chain(natives_list::NATIVES).chain(natives_text::NATIVES)
}

/// Names that Nix has at the top level, without `builtins.`.
const GLOBAL: &[&str] =
    &["abort", "baseNameOf", "dirOf", "import", "isNull", "map", "removeAttrs", "throw", "toString"];

/// Names that exist in Nix and are refused here, with the reason.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "it reaches for the network, and reading a roster does not",
        &["fetchGit", "fetchMercurial", "fetchTarball", "fetchTree", "fetchurl", "fetchClosure", "getFlake"],
    ),
    (
        "a roster builds nothing",
        &["derivation", "derivationStrict", "placeholder", "toFile", "outputOf", "storePath"],
    ),
    (
        "its answer depends on the machine, and a roster must mean the same everywhere",
        &[
            "currentSystem",
            "currentTime",
            "getEnv",
            "nixPath",
            "nixVersion",
            "langVersion",
            "storeDir",
            "findFile",
            "__currentSystem",
            "__currentTime",
        ],
    ),
    (
        "rosters have not needed it so far",
        &[
            "appendContext",
            "compareVersions",
            "convertHash",
            "exec",
            "filterSource",
            "fromTOML",
            "genericClosure",
            "getContext",
            "hashFile",
            "hashString",
            "importNative",
            "match",
            "parseDrvName",
            "parseFlakeRef",
            "path",
            "readFileType",
            "scopedImport",
            "split",
            "splitVersion",
            "toPath",
            "toXML",
            "traceVerbose",
            "unsafeGetAttrPos",
            "flakeRefToString",
            "warn",
            "break",
        ],
    ),
];

const NATIVES: &[Native] = &[
    Native { name: "import", arity: 1, run: import },
    Native { name: "abort", arity: 1, run: thrown },
    Native { name: "throw", arity: 1, run: thrown },
    Native { name: "addErrorContext", arity: 2, run: |ev, a, at| ev.force(a[1], at) },
    Native { name: "trace", arity: 2, run: |ev, a, at| ev.force(a[1], at) },
    Native { name: "seq", arity: 2, run: seq },
    Native { name: "deepSeq", arity: 2, run: deep_seq },
    Native { name: "tryEval", arity: 1, run: try_eval },
    Native { name: "typeOf", arity: 1, run: |ev, a, at| Ok(Value::string(ev.force(a[0], at)?.type_of())) },
    Native { name: "isNull", arity: 1, run: |ev, a, at| is(ev, a, at, "null") },
    Native { name: "isBool", arity: 1, run: |ev, a, at| is(ev, a, at, "bool") },
    Native { name: "isInt", arity: 1, run: |ev, a, at| is(ev, a, at, "int") },
    Native { name: "isFloat", arity: 1, run: |ev, a, at| is(ev, a, at, "float") },
    Native { name: "isString", arity: 1, run: |ev, a, at| is(ev, a, at, "string") },
    Native { name: "isPath", arity: 1, run: |ev, a, at| is(ev, a, at, "path") },
    Native { name: "isList", arity: 1, run: |ev, a, at| is(ev, a, at, "list") },
    Native { name: "isAttrs", arity: 1, run: |ev, a, at| is(ev, a, at, "set") },
    Native { name: "isFunction", arity: 1, run: |ev, a, at| is(ev, a, at, "lambda") },
    Native { name: "functionArgs", arity: 1, run: function_args },
    Native { name: "add", arity: 2, run: |ev, a, at| forced_operator(ev, Op::Add, a, at) },
    Native { name: "sub", arity: 2, run: |ev, a, at| forced_operator(ev, Op::Sub, a, at) },
    Native { name: "mul", arity: 2, run: |ev, a, at| forced_operator(ev, Op::Mul, a, at) },
    Native { name: "div", arity: 2, run: |ev, a, at| forced_operator(ev, Op::Div, a, at) },
    Native { name: "lessThan", arity: 2, run: |ev, a, at| forced_operator(ev, Op::Less, a, at) },
    Native { name: "bitAnd", arity: 2, run: |ev, a, at| bits(ev, a, at, |x, y| x & y) },
    Native { name: "bitOr", arity: 2, run: |ev, a, at| bits(ev, a, at, |x, y| x | y) },
    Native { name: "bitXor", arity: 2, run: |ev, a, at| bits(ev, a, at, |x, y| x ^ y) },
    Native { name: "ceil", arity: 1, run: |ev, a, at| round(ev, a, at, f64::ceil) },
    Native { name: "floor", arity: 1, run: |ev, a, at| round(ev, a, at, f64::floor) },
];

/// The scope in which every file is evaluated.
pub(super) fn base_scope(ev: &mut Evaluator) -> Env {
    let nowhere = Span { file: 0, start: 0, end: 0 };
    let mut names: HashMap<Rc<str>, ThunkId> = HashMap::new();
    let mut builtins = AttrMap::new();
    let mut add = |ev: &mut Evaluator, name: &str, state| {
        let thunk = ev.alloc(nowhere, state);
        // `__name` is the old spelling of every built-in, and needs no `builtins.`.
        if let Some(plain) = name.strip_prefix("__") {
            builtins.insert(plain.into(), Slot { thunk, span: nowhere });
        } else {
            builtins.insert(name.into(), Slot { thunk, span: nowhere });
            names.insert(format!("__{name}").into(), thunk);
        }
        thunk
    };
    let mut global = Vec::new();
    for native in table().filter(|n| !n.name.starts_with("lib.")) {
        let call = Value::Native(Rc::new(NativeCall { native, args: Vec::new() }));
        let thunk = add(ev, native.name, State::Done(call));
        if GLOBAL.contains(&native.name) {
            global.push((native.name, thunk));
        }
    }
    for (name, value) in [("true", Value::Bool(true)), ("false", Value::Bool(false)), ("null", Value::Null)] {
        global.push((name, add(ev, name, State::Done(value))));
    }
    for (reason, forbidden) in FORBIDDEN {
        for name in *forbidden {
            let fault = Fault::new(Class::Unsupported, format!("`{name}` is not available here"))
                .found(format!("`{name}`: {reason}"))
                .hint("write the value out, or keep it in a file of this repository");
            let thunk = add(ev, name, State::Forbidden(fault));
            if ["derivation", "fetchGit", "fetchTarball", "fromTOML", "placeholder", "scopedImport"]
                .contains(name)
            {
                global.push((name, thunk));
            }
        }
    }
    names.extend(global.into_iter().map(|(name, thunk)| (name.into(), thunk)));
    let builtins = ev.alloc(nowhere, State::Done(Value::Attrs(Rc::new(builtins))));
    names.insert("builtins".into(), builtins);
    Some(Rc::new(EnvNode { scope: Scope::Names(RefCell::new(names)), parent: None }))
}

/// The scope of `lib.nix`. It has helpers that are no builtins of Nix.
pub(super) fn lib_scope(ev: &mut Evaluator) -> Env {
    let nowhere = Span { file: 0, start: 0, end: 0 };
    let mut names = HashMap::new();
    for native in table() {
        if let Some(name) = native.name.strip_prefix("lib.") {
            let call = Value::Native(Rc::new(NativeCall { native, args: Vec::new() }));
            names.insert(name.into(), ev.alloc(nowhere, State::Done(call)));
        }
    }
    let parent = base_scope(ev);
    Some(Rc::new(EnvNode { scope: Scope::Names(RefCell::new(names)), parent }))
}

// --- arguments of built-in functions -----------------------------------------------------------------------------

impl Evaluator<'_> {
    pub(super) fn arg_string(&mut self, id: ThunkId, at: Span, what: &str) -> R<Rc<str>> {
        match self.force(id, at)? {
            Value::Str(s) => Ok(s),
            other => Err(wrong_type(what, "a string", &other, self.blame(id, at))),
        }
    }

    pub(super) fn arg_list(&mut self, id: ThunkId, at: Span, what: &str) -> R<Rc<Vec<ThunkId>>> {
        match self.force(id, at)? {
            Value::List(items) => Ok(items),
            other => Err(wrong_type(what, "a list", &other, self.blame(id, at))),
        }
    }

    pub(super) fn arg_attrs(&mut self, id: ThunkId, at: Span, what: &str) -> R<Rc<AttrMap>> {
        match self.force(id, at)? {
            Value::Attrs(map) => Ok(map),
            other => Err(wrong_type(what, "an attribute set", &other, self.blame(id, at))),
        }
    }

    pub(super) fn arg_int(&mut self, id: ThunkId, at: Span, what: &str) -> R<i64> {
        match self.force(id, at)? {
            Value::Int(i) => Ok(i),
            other => Err(wrong_type(what, "an integer", &other, self.blame(id, at))),
        }
    }

    /// A path, or the text that `toString` made from one.
    pub(super) fn arg_path(&mut self, id: ThunkId, at: Span, what: &str) -> R<Rc<str>> {
        match self.force(id, at)? {
            Value::Path(path) => Ok(path),
            Value::Str(s) => match s.strip_prefix(TOP) {
                Some(rest) => crate::source::join("", rest)
                    .map(Into::into)
                    .map_err(|e| super::eval::path_fault(&s, &e).at(self.blame(id, at))),
                None => Err(Fault::new(
                    Class::Outside,
                    format!("the path {} leaves the repository", crate::diag::quoted(&s)),
                )
                .at(self.blame(id, at))
                .expected("a path relative to this file, such as ./keys/alice.pub")
                .found("a string")),
            },
            other => Err(wrong_type(what, "a path", &other, self.blame(id, at))),
        }
    }
}

// --- operators ---------------------------------------------------------------------------------------------------

fn forced_operator(ev: &mut Evaluator, op: Op, a: &[ThunkId], at: Span) -> R<Value> {
    let (left, right) = (ev.force(a[0], at)?, ev.force(a[1], at)?);
    let (left_at, right_at) = (ev.blame(a[0], at), ev.blame(a[1], at));
    operator(ev, op, (left, left_at), (right, right_at), at)
}

pub(super) fn negate(value: Value, at: Span) -> R<Value> {
    match value {
        Value::Int(i) => i.checked_neg().map(Value::Int).ok_or_else(|| overflow(at)),
        Value::Float(f) => Ok(Value::Float(-f)),
        other => Err(wrong_type("the operand of `-`", "a number", &other, at)),
    }
}

fn overflow(at: Span) -> Fault {
    Fault::new(Class::Type, "this number does not fit in 64 bits").at(at)
}

/// Applies a binary operator that needs both operands.
pub(super) fn operator(ev: &mut Evaluator, op: Op, a: (Value, Span), b: (Value, Span), at: Span) -> R<Value> {
    let ((left, left_at), (right, right_at)) = (a, b);
    Ok(match op {
        Op::Equal => Value::Bool(equal(ev, &left, &right, at)?),
        Op::NotEqual => Value::Bool(!equal(ev, &left, &right, at)?),
        Op::Less => Value::Bool(compare(ev, &left, &right, at)? == Ordering::Less),
        Op::LessEq => Value::Bool(compare(ev, &right, &left, at)? != Ordering::Less),
        Op::More => Value::Bool(compare(ev, &right, &left, at)? == Ordering::Less),
        Op::MoreEq => Value::Bool(compare(ev, &left, &right, at)? != Ordering::Less),
        Op::Concat => match (left, right) {
            (Value::List(a), Value::List(b)) => {
                ev.pay_values(a.len() + b.len())?;
                Value::List(Rc::new(a.iter().chain(b.iter()).copied().collect()))
            }
            (Value::List(_), other) => {
                return Err(wrong_type("the right side of `++`", "a list", &other, right_at));
            }
            (other, _) => return Err(wrong_type("the left side of `++`", "a list", &other, left_at)),
        },
        Op::Update => match (left, right) {
            (Value::Attrs(a), Value::Attrs(b)) => {
                ev.pay_values(a.len() + b.len())?;
                let mut map = (*a).clone();
                map.extend(b.iter().map(|(k, v)| (k.clone(), *v)));
                Value::Attrs(Rc::new(map))
            }
            (Value::Attrs(_), other) => {
                return Err(wrong_type("the right side of `//`", "an attribute set", &other, right_at));
            }
            (other, _) => {
                return Err(wrong_type("the left side of `//`", "an attribute set", &other, left_at));
            }
        },
        Op::Add if !is_number(&left) => add_text(ev, (left, left_at), (right, right_at), at)?,
        Op::Add | Op::Sub | Op::Mul | Op::Div => arithmetic(op, (left, left_at), (right, right_at), at)?,
        Op::And | Op::Or | Op::Implies => unreachable!("these do not need both sides"),
    })
}

fn is_number(value: &Value) -> bool {
    matches!(value, Value::Int(_) | Value::Float(_))
}

fn add_text(ev: &mut Evaluator, a: (Value, Span), b: (Value, Span), at: Span) -> R<Value> {
    match (&a.0, &b.0) {
        (Value::Path(path), Value::Str(more)) => {
            ev.pay_text(path.len() + more.len())?;
            // The text is appended before the path is normalised: `./keys + ".old"` is a name beside `keys`.
            let joined = crate::source::join("", &format!("/{path}{more}"));
            joined.map(|p| Value::Path(p.into())).map_err(|e| super::eval::path_fault(more, &e).at(at))
        }
        (Value::Path(a), Value::Path(b)) => {
            let joined = crate::source::join("", &format!("/{a}/{b}"));
            joined.map(|p| Value::Path(p.into())).map_err(|e| super::eval::path_fault(b, &e).at(at))
        }
        (Value::Str(_) | Value::Attrs(_), _) => {
            let left = ev.interpolated(&a.0, a.1)?;
            let right = ev.interpolated(&b.0, b.1)?;
            ev.pay_text(left.len() + right.len())?;
            Ok(Value::string(format!("{left}{right}")))
        }
        (other, _) => Err(wrong_type("the left side of `+`", "a number, a string or a path", other, a.1)),
    }
}

fn arithmetic(op: Op, a: (Value, Span), b: (Value, Span), at: Span) -> R<Value> {
    let sign = match op {
        Op::Add => "+",
        Op::Sub => "-",
        Op::Mul => "*",
        _ => "/",
    };
    let number = |value: &Value, at| match value {
        Value::Int(i) => Ok(*i as f64),
        Value::Float(f) => Ok(*f),
        other => Err(wrong_type(&format!("what `{sign}` is applied to"), "a number", other, at)),
    };
    let (x, y) = (number(&a.0, a.1)?, number(&b.0, b.1)?);
    if op == Op::Div && y == 0.0 {
        return Err(Fault::new(Class::Type, "this divides by zero").at(at));
    }
    if let (Value::Int(x), Value::Int(y)) = (&a.0, &b.0) {
        let result = match op {
            Op::Add => x.checked_add(*y),
            Op::Sub => x.checked_sub(*y),
            Op::Mul => x.checked_mul(*y),
            _ => x.checked_div(*y),
        };
        return result.map(Value::Int).ok_or_else(|| overflow(at));
    }
    Ok(Value::Float(match op {
        Op::Add => x + y,
        Op::Sub => x - y,
        Op::Mul => x * y,
        _ => x / y,
    }))
}

/// Nix's `==`. A function equals nothing, not even itself. (Nix compares pointers first in some places; this makes no
/// difference to rosters.)
pub(super) fn equal(ev: &mut Evaluator, a: &Value, b: &Value, at: Span) -> R<bool> {
    ev.step(1)?;
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Float(a), Value::Float(b)) => a == b,
        (Value::Int(a), Value::Float(b)) | (Value::Float(b), Value::Int(a)) => *a as f64 == *b,
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::Path(a), Value::Path(b)) => a == b,
        (Value::List(a), Value::List(b)) => a.len() == b.len() && equal_all(ev, a.iter().zip(b.iter()), at)?,
        (Value::Attrs(a), Value::Attrs(b)) => {
            a.len() == b.len()
                && a.keys().eq(b.keys())
                && equal_all(ev, a.values().map(|s| &s.thunk).zip(b.values().map(|s| &s.thunk)), at)?
        }
        _ => false,
    })
}

fn equal_all<'a>(
    ev: &mut Evaluator,
    pairs: impl Iterator<Item = (&'a ThunkId, &'a ThunkId)>,
    at: Span,
) -> R<bool> {
    for (a, b) in pairs {
        let (a, b) = (ev.force(*a, at)?, ev.force(*b, at)?);
        if !ev.nested(at, |ev| equal(ev, &a, &b, at))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Nix's `<`, for numbers, strings, paths and lists of these.
pub(super) fn compare(ev: &mut Evaluator, a: &Value, b: &Value, at: Span) -> R<Ordering> {
    ev.step(1)?;
    let floats = |a: f64, b: f64| a.partial_cmp(&b).unwrap_or(Ordering::Greater);
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => floats(*a, *b),
        (Value::Int(a), Value::Float(b)) => floats(*a as f64, *b),
        (Value::Float(a), Value::Int(b)) => floats(*a, *b as f64),
        (Value::Str(a), Value::Str(b)) | (Value::Path(a), Value::Path(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::List(a), Value::List(b)) => {
            for (x, y) in a.iter().zip(b.iter()) {
                let (x, y) = (ev.force(*x, at)?, ev.force(*y, at)?);
                if !ev.nested(at, |ev| equal(ev, &x, &y, at))? {
                    return ev.nested(at, |ev| compare(ev, &x, &y, at));
                }
            }
            a.len().cmp(&b.len())
        }
        (a, b) => {
            return Err(Fault::new(
                Class::Type,
                format!("{} cannot be compared with {}", a.kind(), b.kind()),
            )
            .at(at)
            .expected("two numbers, two strings, two paths or two lists")
            .found(format!("{} and {}", a.kind(), b.kind())));
        }
    })
}

// --- the functions -----------------------------------------------------------------------------------------------

fn import(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let path = ev.arg_path(a[0], at, "the argument of `import`")?;
    let blame = ev.blame(a[0], at);
    ev.import_file(&path).map_err(|f| if f.span().is_none() { f.at(blame) } else { f })
}

fn thrown(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let text = ev.arg_string(a[0], at, "the message of `throw`")?;
    Err(Fault::new(Class::Thrown, format!("the roster refuses itself: {}", crate::diag::quoted(&text)))
        .at(at))
}

fn seq(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    ev.force(a[0], at)?;
    ev.force(a[1], at)
}

fn deep_seq(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    deep(ev, a[0], at)?;
    ev.force(a[1], at)
}

fn deep(ev: &mut Evaluator, id: ThunkId, at: Span) -> R<()> {
    let children: Vec<ThunkId> = match ev.force(id, at)? {
        Value::List(items) => items.to_vec(),
        Value::Attrs(map) => map.values().map(|s| s.thunk).collect(),
        _ => return Ok(()),
    };
    ev.step(children.len() as u64)?;
    children.into_iter().try_for_each(|child| ev.nested(at, |ev| deep(ev, child, at)))
}

/// Catches `throw` and failed assertions, as Nix does, and nothing else.
fn try_eval(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let (success, value) = match ev.force(a[0], at) {
        Ok(value) => (true, value),
        Err(fault) if fault.class() == Class::Thrown => (false, Value::Bool(false)),
        Err(fault) => return Err(fault),
    };
    let mut map = AttrMap::new();
    for (name, value) in [("success", Value::Bool(success)), ("value", value)] {
        let thunk = ev.done(value, at)?;
        map.insert(name.into(), Slot { thunk, span: at });
    }
    Ok(Value::Attrs(Rc::new(map)))
}

fn is(ev: &mut Evaluator, a: &[ThunkId], at: Span, kind: &str) -> R<Value> {
    Ok(Value::Bool(ev.force(a[0], at)?.type_of() == kind))
}

fn function_args(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    use super::ast::Param;
    let mut map = AttrMap::new();
    match ev.force(a[0], at)? {
        Value::Lambda(closure) => {
            if let Param::Formals { formals, .. } = &closure.lambda.param {
                for formal in formals {
                    let thunk = ev.done(Value::Bool(formal.default.is_some()), at)?;
                    map.insert(formal.name.clone(), Slot { thunk, span: at });
                }
            }
        }
        Value::Native(_) => {}
        other => {
            return Err(wrong_type(
                "the argument of `functionArgs`",
                "a function",
                &other,
                ev.blame(a[0], at),
            ));
        }
    }
    Ok(Value::Attrs(Rc::new(map)))
}

fn bits(ev: &mut Evaluator, a: &[ThunkId], at: Span, f: fn(i64, i64) -> i64) -> R<Value> {
    Ok(Value::Int(f(
        ev.arg_int(a[0], at, "the first argument")?,
        ev.arg_int(a[1], at, "the second argument")?,
    )))
}

fn round(ev: &mut Evaluator, a: &[ThunkId], at: Span, f: fn(f64) -> f64) -> R<Value> {
    match ev.force(a[0], at)? {
        Value::Int(i) => Ok(Value::Int(i)),
        // `as` saturates; no number in a roster needs more than 64 bits.
        Value::Float(x) => Ok(Value::Int(f(x) as i64)),
        other => Err(wrong_type("the argument", "a number", &other, ev.blame(a[0], at))),
    }
}
