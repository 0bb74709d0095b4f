//! NixOS modules as rosters: `users.users.<name>.openssh.authorizedKeys`, through `imports`, `mkIf` and `mkMerge`.
//!
//! Only what leads to the keys is evaluated; the rest of a module may name things that do not exist here.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::inspect::{ALLOWED_USERS, Groups, TRUSTED_USERS};
use crate::diag::{Class, Fault, Span, quoted};
use crate::nix::{AttrMap, Evaluator, Slot, ThunkId, Value};

type R<T> = Result<T, Fault>;

/// Modules one roster may import, and definitions one option may have.
const MAX_PARTS: usize = 1000;
/// How deep `imports` and `mkMerge` nest. Modules of communities do not nest deeper than three.
const MAX_DEPTH: usize = 50;

/// Whether a value is a member's entry: a set with `keys` that are no set of their own.
pub fn is_member(ev: &mut Evaluator, id: ThunkId, at: Span) -> bool {
    let Ok(Value::Attrs(map)) = ev.force(id, at) else { return false };
    map.get("keys").is_some_and(|keys| !matches!(ev.force(keys.thunk, at), Ok(Value::Attrs(_))))
}

/// Whether a set at the top of a file is a NixOS module and not a roster: no member's attributes look like this.
pub fn is_module(ev: &mut Evaluator, map: &AttrMap, at: Span) -> R<bool> {
    let set_with = |ev: &mut Evaluator, name: &str, inner: &str| -> R<bool> {
        let Some(slot) = map.get(name) else { return Ok(false) };
        let Value::Attrs(value) = ev.force(slot.thunk, at)? else { return Ok(false) };
        let Some(slot) = value.get(inner) else { return Ok(value.contains_key("_type")) };
        // `{ users = { users.keys = "…"; }; }` is a member of this name.
        Ok(!is_member(ev, slot.thunk, at))
    };
    if let Some(slot) = map.get("imports")
        && matches!(ev.force(slot.thunk, at)?, Value::List(_))
    {
        return Ok(true);
    }
    Ok(set_with(ev, "users", "users")? || set_with(ev, "config", "users")?)
}

/// A user of a module: name, where it is written, and the definitions of `openssh.authorizedKeys`.
pub struct User {
    pub name: Rc<str>,
    pub span: Span,
    pub keys: Vec<ThunkId>,
    pub key_files: Vec<ThunkId>,
}

/// What was found of each user, by name; a fault in any definition of theirs is all that counts.
type Found = BTreeMap<Rc<str>, R<User>>;

/// All users a module and its imports define, in order of name. `groups`, if asked for, gets the groups they are in.
pub fn users(ev: &mut Evaluator, module: Rc<AttrMap>, at: Span, groups: &mut Option<Groups>) -> R<Found> {
    let mut found = Found::new();
    let mut parts = 0;
    let mut todo = vec![(module, 0usize)];
    while let Some((module, depth)) = todo.pop() {
        parts += 1;
        if parts > MAX_PARTS || depth > MAX_DEPTH {
            return Err(Fault::new(Class::Limit, "too many modules import each other")
                .at(at)
                .expected(format!("at most {MAX_PARTS} modules, {MAX_DEPTH} deep")));
        }
        if let Some(slot) = module.get("imports") {
            for import in list(ev, slot.thunk, at, "`imports`")?.iter() {
                todo.push((imported(ev, *import, at)?, depth + 1));
            }
        }
        let root = match module.get("config") {
            Some(slot) => definitions(ev, slot.thunk, at)?,
            None => vec![module],
        };
        if let Some(groups) = groups {
            note_settings(ev, &root, at, groups);
        }
        let outer = below(ev, root, "users", at)?;
        if let Some(groups) = groups {
            note_groups(ev, &outer, at, groups);
        }
        for users in below(ev, outer, "users", at)? {
            for (name, slot) in users.iter() {
                if let Err(fault) = add_user(ev, &mut found, name, *slot, at, groups) {
                    found.insert(name.clone(), Err(fault));
                }
            }
        }
    }
    Ok(found)
}

fn add_user(
    ev: &mut Evaluator,
    found: &mut Found,
    name: &Rc<str>,
    slot: Slot,
    at: Span,
    groups: &mut Option<Groups>,
) -> R<()> {
    let user = definitions(ev, slot.thunk, at)?;
    if let Some(groups) = groups {
        for set in &user {
            for group in strings(ev, set, "extraGroups", at) {
                groups.entry(group).or_default().insert(name.to_string());
            }
        }
    }
    let openssh = below(ev, user, "openssh", at)?;
    for keys in below(ev, openssh, "authorizedKeys", at)? {
        let entry = found.entry(name.clone()).or_insert_with(|| {
            Ok(User { name: name.clone(), span: slot.span, keys: Vec::new(), key_files: Vec::new() })
        });
        let Ok(entry) = entry else { return Ok(()) };
        for (attribute, into) in [("keys", &mut entry.keys), ("keyFiles", &mut entry.key_files)] {
            if let Some(slot) = keys.get(attribute) {
                for value in contents(ev, slot.thunk, at, 0)? {
                    into.extend(list(ev, value, at, attribute)?.iter());
                }
            }
        }
    }
    Ok(())
}

/// `users.groups.<name>.members`.
fn note_groups(ev: &mut Evaluator, users: &[Rc<AttrMap>], at: Span, groups: &mut Groups) {
    for set in below(ev, users.to_vec(), "groups", at).unwrap_or_default() {
        for (name, slot) in set.iter() {
            for group in definitions(ev, slot.thunk, at).unwrap_or_default() {
                for user in strings(ev, &group, "members", at) {
                    groups.entry(name.to_string()).or_default().insert(user);
                }
            }
        }
    }
}

/// `nix.settings.trusted-users` and `allowed-users`, as groups of these names.
fn note_settings(ev: &mut Evaluator, root: &[Rc<AttrMap>], at: Span, groups: &mut Groups) {
    let settings = below(ev, root.to_vec(), "nix", at).and_then(|nix| below(ev, nix, "settings", at));
    for set in settings.unwrap_or_default() {
        for setting in [TRUSTED_USERS, ALLOWED_USERS] {
            for user in strings(ev, &set, setting, at) {
                groups.entry(setting.to_owned()).or_default().insert(user);
            }
        }
    }
}

/// The strings in a list that has no effect on the roster. What cannot be evaluated here is left away: no mistake in it
/// keeps anybody out.
fn strings(ev: &mut Evaluator, set: &Rc<AttrMap>, attribute: &str, at: Span) -> Vec<String> {
    let mut out = Vec::new();
    let Some(slot) = set.get(attribute) else { return out };
    for value in contents(ev, slot.thunk, at, 0).unwrap_or_default() {
        let Ok(items) = list(ev, value, at, attribute) else { continue };
        for item in items.iter() {
            if let Ok(Value::Str(text)) = ev.force(*item, at) {
                out.push(text.to_string());
            }
        }
    }
    out
}

fn imported(ev: &mut Evaluator, id: ThunkId, at: Span) -> R<Rc<AttrMap>> {
    let value = match ev.force(id, at)? {
        Value::Path(path) => {
            let blame = ev.blame(id, at);
            ev.import_file(&path).map_err(|f| if f.span().is_none() { f.at(blame) } else { f })?
        }
        other => other,
    };
    match ev.call_module(value)? {
        Value::Attrs(map) => Ok(map),
        other => Err(Fault::new(Class::Roster, "this import is not a module")
            .at(ev.blame(id, at))
            .expected("a path to a module, or a module")
            .found(other.kind())),
    }
}

/// The sets that define attribute `name` in any of `sets`.
fn below(ev: &mut Evaluator, sets: Vec<Rc<AttrMap>>, name: &str, at: Span) -> R<Vec<Rc<AttrMap>>> {
    let mut out = Vec::new();
    for set in sets {
        if let Some(slot) = set.get(name) {
            out.extend(definitions(ev, slot.thunk, at)?);
        }
        if out.len() > MAX_PARTS {
            return Err(Fault::new(Class::Limit, format!("{} has too many definitions", quoted(name))).at(at));
        }
    }
    Ok(out)
}

/// The sets a value stands for.
fn definitions(ev: &mut Evaluator, id: ThunkId, at: Span) -> R<Vec<Rc<AttrMap>>> {
    let mut out = Vec::new();
    for id in contents(ev, id, at, 0)? {
        match ev.force(id, at)? {
            Value::Attrs(map) => out.push(map),
            other => {
                return Err(Fault::new(Class::Type, "this part of the module must be an attribute set")
                    .at(ev.blame(id, at))
                    .expected("an attribute set")
                    .found(other.kind()));
            }
        }
    }
    Ok(out)
}

/// Looks through `mkIf`, `mkMerge`, `mkForce` and friends. Priorities are not weighed: every key listed is a key.
fn contents(ev: &mut Evaluator, id: ThunkId, at: Span, depth: usize) -> R<Vec<ThunkId>> {
    let Value::Attrs(map) = ev.force(id, at)? else { return Ok(vec![id]) };
    let Some(kind) = map.get("_type") else { return Ok(vec![id]) };
    let blame = ev.blame(id, at);
    if depth > MAX_DEPTH {
        return Err(Fault::new(Class::Limit, "`mkIf` and `mkMerge` are nested too deeply").at(blame));
    }
    let kind = match ev.force(kind.thunk, at)? {
        Value::Str(s) => s,
        _ => return Ok(vec![id]),
    };
    let part = |name: &str| {
        map.get(name).map(|s| s.thunk).ok_or_else(|| {
            Fault::new(Class::Roster, format!("a value of type {} without `{name}`", quoted(&kind))).at(blame)
        })
    };
    match &*kind {
        "if" => match ev.force(part("condition")?, at)? {
            Value::Bool(true) => contents(ev, part("content")?, at, depth + 1),
            Value::Bool(false) => Ok(Vec::new()),
            other => Err(Fault::new(Class::Type, "the condition of `mkIf` must be true or false")
                .at(blame)
                .found(other.kind())),
        },
        "merge" => {
            let mut out = Vec::new();
            for item in list(ev, part("contents")?, at, "`mkMerge`")?.iter() {
                out.extend(contents(ev, *item, at, depth + 1)?);
                if out.len() > MAX_PARTS {
                    return Err(Fault::new(Class::Limit, "`mkMerge` has too many parts").at(blame));
                }
            }
            Ok(out)
        }
        "override" | "order" => contents(ev, part("content")?, at, depth + 1),
        _ => Ok(vec![id]),
    }
}

fn list(ev: &mut Evaluator, id: ThunkId, at: Span, what: &str) -> R<Rc<Vec<ThunkId>>> {
    match ev.force(id, at)? {
        Value::List(items) => Ok(items),
        other => Err(Fault::new(Class::Type, format!("{what} must be a list"))
            .at(ev.blame(id, at))
            .expected("a list")
            .found(other.kind())),
    }
}
