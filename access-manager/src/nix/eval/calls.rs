//! Calls of functions: those that files define, the built-in ones, and a whole file that is a NixOS module.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Evaluator, LIB_FILE, R, wrong_type};
use crate::diag::{Class, Fault, Span, quoted};
use crate::nix::ast::*;
use crate::nix::value::*;

impl Evaluator<'_> {
    pub(in crate::nix) fn call_thunk(&mut self, f: ThunkId, args: &[ThunkId], at: Span) -> R<Value> {
        let mut value = self.force(f, at)?;
        for arg in args {
            value = self.call(value, *arg, at)?;
        }
        Ok(value)
    }

    pub(in crate::nix) fn call(&mut self, f: Value, arg: ThunkId, at: Span) -> R<Value> {
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
                // A functor may return itself. There is no expression in between, so the levels are counted here.
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

    pub(super) fn call_lambda(&mut self, closure: &Closure, arg: ThunkId, at: Span) -> R<Value> {
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

    /// Calls `value`, if it is a function, as a NixOS module is called: with `lib`, `pkgs.lib`, and arguments that
    /// fail when they are used.
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
        // A module without `...` gets only the arguments that it names.
        if let Param::Formals { open: false, formals, .. } = &closure.lambda.param {
            map.retain(|name, _| formals.iter().any(|f| f.name == *name));
        }
        let args = self.done(Value::Attrs(Rc::new(map)), at)?;
        self.call(value.clone(), args, at)
    }
}

/// Gives a fault inside `lib` the position of the caller, since that is where a mistake can be corrected.
pub(super) fn point_out_of_lib(fault: Fault, at: Span) -> Fault {
    match fault.span() {
        Some(span) if span.file != LIB_FILE => fault,
        _ => fault.at(at),
    }
}
