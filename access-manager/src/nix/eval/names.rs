//! Names and attributes: scopes, sets, selection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::{Evaluator, R, wrong_type};
use crate::diag::{Class, Fault, Span, did_you_mean, quoted};
use crate::nix::ast::*;
use crate::nix::value::*;

impl Evaluator<'_> {
    pub(super) fn lookup(&mut self, name: &Sym, env: &Env, at: Span) -> R<ThunkId> {
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
        // Names in the lexical scope take precedence over every `with`, and an inner `with` over an outer one.
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

    pub(super) fn nearest_name(&self, name: &str, env: &Env) -> Option<String> {
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

    /// Makes the attributes of a set literal. Also returns the scope of its values.
    pub(super) fn attr_set(&mut self, set: &AttrSet, env: &Env) -> R<(AttrMap, Env)> {
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
                // As in Nix, an attribute whose computed name is null is left out.
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

    pub(super) fn name_of(&mut self, name: &Name, env: &Env) -> R<(Sym, Span)> {
        match name {
            Name::Known(sym, span) => Ok((sym.clone(), *span)),
            Name::Computed(e) => match self.eval(e, env)? {
                Value::Str(s) => Ok((s, e.span)),
                other => Err(wrong_type("an attribute's name", "a string", &other, e.span)),
            },
        }
    }

    /// Follows `.a.b.c` to the last attribute without forcing it. The inner error is for `or` and `?`.
    pub(super) fn walk(
        &mut self,
        base: Value,
        path: &[Name],
        env: &Env,
        at: Span,
    ) -> R<Result<ThunkId, Missing>> {
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

    pub(super) fn select(
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
                        "only the functions that rosters commonly use are known here; see docs/reference/roster.md",
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
}

/// The first attribute of a path that does not exist.
pub(super) struct Missing {
    pub(super) inside: Value,
    pub(super) name: Sym,
    pub(super) span: Span,
}
