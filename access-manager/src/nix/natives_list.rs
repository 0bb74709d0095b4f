//! Built-in functions on lists and attribute sets.

use std::rc::Rc;

use super::eval::{Evaluator, R, wrong_type};
use super::natives::equal;
use super::value::*;
use crate::diag::{Class, Fault, Span, did_you_mean, quoted};

pub(super) const NATIVES: &[Native] = &[
    Native { name: "all", arity: 2, run: |ev, a, at| quantify(ev, a, at, false) },
    Native { name: "any", arity: 2, run: |ev, a, at| quantify(ev, a, at, true) },
    Native { name: "concatLists", arity: 1, run: concat_lists },
    Native { name: "concatMap", arity: 2, run: concat_map },
    Native { name: "elem", arity: 2, run: elem },
    Native { name: "elemAt", arity: 2, run: elem_at },
    Native { name: "filter", arity: 2, run: filter },
    Native { name: "foldl'", arity: 3, run: foldl },
    Native { name: "genList", arity: 2, run: gen_list },
    Native { name: "groupBy", arity: 2, run: group_by },
    Native { name: "head", arity: 1, run: head },
    Native { name: "length", arity: 1, run: length },
    Native { name: "map", arity: 2, run: map },
    Native { name: "partition", arity: 2, run: partition },
    Native { name: "sort", arity: 2, run: sort },
    Native { name: "tail", arity: 1, run: tail },
    Native { name: "attrNames", arity: 1, run: attr_names },
    Native { name: "attrValues", arity: 1, run: attr_values },
    Native { name: "catAttrs", arity: 2, run: cat_attrs },
    Native { name: "getAttr", arity: 2, run: get_attr },
    Native { name: "hasAttr", arity: 2, run: has_attr },
    Native { name: "intersectAttrs", arity: 2, run: intersect_attrs },
    Native { name: "listToAttrs", arity: 1, run: list_to_attrs },
    Native { name: "mapAttrs", arity: 2, run: map_attrs },
    Native { name: "removeAttrs", arity: 2, run: remove_attrs },
    Native { name: "zipAttrsWith", arity: 2, run: zip_attrs_with },
];

fn list(items: Vec<ThunkId>) -> Value {
    Value::List(Rc::new(items))
}

fn quantify(ev: &mut Evaluator, a: &[ThunkId], at: Span, stop: bool) -> R<Value> {
    for item in ev.arg_list(a[1], at, "the list")?.iter() {
        if test(ev, a[0], *item, at)? == stop {
            return Ok(Value::Bool(stop));
        }
    }
    Ok(Value::Bool(!stop))
}

/// Calls a predicate.
fn test(ev: &mut Evaluator, f: ThunkId, item: ThunkId, at: Span) -> R<bool> {
    match ev.call_thunk(f, &[item], at)? {
        Value::Bool(b) => Ok(b),
        other => Err(wrong_type("the predicate's answer", "true or false", &other, ev.blame(f, at))),
    }
}

fn concat_lists(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut out = Vec::new();
    for item in ev.arg_list(a[0], at, "the argument of `concatLists`")?.iter() {
        let inner = ev.arg_list(*item, at, "each element for `concatLists`")?;
        ev.pay_values(inner.len())?;
        out.extend_from_slice(&inner);
    }
    Ok(list(out))
}

fn concat_map(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut out = Vec::new();
    for item in ev.arg_list(a[1], at, "the second argument of `concatMap`")?.iter() {
        match ev.call_thunk(a[0], &[*item], at)? {
            Value::List(inner) => {
                ev.pay_values(inner.len())?;
                out.extend_from_slice(&inner);
            }
            other => return Err(wrong_type("what the function gives to `concatMap`", "a list", &other, at)),
        }
    }
    Ok(list(out))
}

fn elem(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let items = ev.arg_list(a[1], at, "the second argument of `elem`")?;
    for item in items.iter() {
        let (x, y) = (ev.force(a[0], at)?, ev.force(*item, at)?);
        if equal(ev, &x, &y, at)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn elem_at(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let items = ev.arg_list(a[0], at, "the first argument of `elemAt`")?;
    let index = ev.arg_int(a[1], at, "the index")?;
    match usize::try_from(index).ok().and_then(|i| items.get(i)) {
        Some(item) => ev.force(*item, at),
        None => Err(Fault::new(Class::Type, format!("the list has no element {index}"))
            .at(at)
            .expected(format!("an index from 0, below {}", items.len()))),
    }
}

fn filter(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut out = Vec::new();
    for item in ev.arg_list(a[1], at, "the second argument of `filter`")?.iter() {
        if test(ev, a[0], *item, at)? {
            out.push(*item);
        }
    }
    ev.pay_values(out.len())?;
    Ok(list(out))
}

fn foldl(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut sum = a[1];
    for item in ev.arg_list(a[2], at, "the third argument of `foldl'`")?.iter() {
        let value = ev.call_thunk(a[0], &[sum, *item], at)?;
        sum = ev.done(value, at)?;
    }
    ev.force(sum, at)
}

fn gen_list(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let count = ev.arg_int(a[1], at, "the length")?;
    let count = usize::try_from(count)
        .map_err(|_| Fault::new(Class::Type, format!("a list cannot have {count} elements")).at(at))?;
    // Charged before anything is made, since the author of the roster chooses the length.
    ev.pay_values(count)?;
    let mut out = Vec::with_capacity(count);
    for i in 0..count {
        let index = ev.done(Value::Int(i as i64), at)?;
        out.push(ev.delay_call(a[0], vec![index], at)?);
    }
    Ok(list(out))
}

fn group_by(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut groups: std::collections::BTreeMap<Rc<str>, Vec<ThunkId>> = Default::default();
    for item in ev.arg_list(a[1], at, "the second argument of `groupBy`")?.iter() {
        match ev.call_thunk(a[0], &[*item], at)? {
            Value::Str(key) => groups.entry(key).or_default().push(*item),
            other => return Err(wrong_type("the group's name", "a string", &other, at)),
        }
        ev.pay_values(1)?;
    }
    let mut map = AttrMap::new();
    for (key, items) in groups {
        let thunk = ev.done(list(items), at)?;
        map.insert(key, Slot { thunk, span: at });
    }
    Ok(Value::Attrs(Rc::new(map)))
}

fn head(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    match ev.arg_list(a[0], at, "the argument of `head`")?.first() {
        Some(item) => ev.force(*item, at),
        None => Err(Fault::new(Class::Type, "`head` of an empty list").at(at)),
    }
}

fn tail(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let items = ev.arg_list(a[0], at, "the argument of `tail`")?;
    match items.split_first() {
        Some((_, rest)) => {
            ev.pay_values(rest.len())?;
            Ok(list(rest.to_vec()))
        }
        None => Err(Fault::new(Class::Type, "`tail` of an empty list").at(at)),
    }
}

fn length(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    Ok(Value::Int(ev.arg_list(a[0], at, "the argument of `length`")?.len() as i64))
}

fn map(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let items = ev.arg_list(a[1], at, "the second argument of `map`")?;
    let mut out = Vec::with_capacity(items.len());
    for item in items.iter() {
        let span = ev.blame(*item, at);
        out.push(ev.delay_call(a[0], vec![*item], span)?);
    }
    Ok(list(out))
}

fn partition(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for item in ev.arg_list(a[1], at, "the second argument of `partition`")?.iter() {
        if test(ev, a[0], *item, at)? {
            right.push(*item)
        } else {
            wrong.push(*item)
        }
        ev.pay_values(1)?;
    }
    let mut map = AttrMap::new();
    for (name, items) in [("right", right), ("wrong", wrong)] {
        let thunk = ev.done(list(items), at)?;
        map.insert(name.into(), Slot { thunk, span: at });
    }
    Ok(Value::Attrs(Rc::new(map)))
}

/// A stable merge sort. Not `sort_by`: the roster's order function may fail, and may be inconsistent.
fn sort(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut items = ev.arg_list(a[1], at, "the second argument of `sort`")?.to_vec();
    let mut width = 1;
    while width < items.len() {
        ev.pay_values(items.len())?;
        let mut merged = Vec::with_capacity(items.len());
        for run in items.chunks(width * 2) {
            let (mut left, mut right) = run.split_at(width.min(run.len()));
            while let (Some(x), Some(y)) = (left.first(), right.first()) {
                // The right element goes first only when it is strictly less: equal elements keep their order.
                let less = match ev.call_thunk(a[0], &[*y, *x], at)? {
                    Value::Bool(b) => b,
                    other => return Err(wrong_type("the order's answer", "true or false", &other, at)),
                };
                let from = if less { &mut right } else { &mut left };
                merged.push(from[0]);
                *from = &from[1..];
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        items = merged;
        width *= 2;
    }
    Ok(list(items))
}

fn attr_names(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let map = ev.arg_attrs(a[0], at, "the argument of `attrNames`")?;
    let mut out = Vec::with_capacity(map.len());
    for (name, slot) in map.iter() {
        out.push(ev.done(Value::Str(name.clone()), slot.span)?);
    }
    Ok(list(out))
}

fn attr_values(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let map = ev.arg_attrs(a[0], at, "the argument of `attrValues`")?;
    ev.pay_values(map.len())?;
    Ok(list(map.values().map(|slot| slot.thunk).collect()))
}

fn cat_attrs(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let name = ev.arg_string(a[0], at, "the attribute's name")?;
    let mut out = Vec::new();
    for item in ev.arg_list(a[1], at, "the second argument of `catAttrs`")?.iter() {
        if let Some(slot) = ev.arg_attrs(*item, at, "each element for `catAttrs`")?.get(&name) {
            out.push(slot.thunk);
        }
        ev.pay_values(1)?;
    }
    Ok(list(out))
}

fn get_attr(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let name = ev.arg_string(a[0], at, "the attribute's name")?;
    let map = ev.arg_attrs(a[1], at, "the second argument of `getAttr`")?;
    match map.get(&name) {
        Some(slot) => ev.force(slot.thunk, at),
        None => {
            let fault =
                Fault::new(Class::Undefined, format!("there is no attribute {}", quoted(&name))).at(at);
            Err(fault.did_you_mean(did_you_mean(&name, map.keys().map(|k| &**k))))
        }
    }
}

fn has_attr(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let name = ev.arg_string(a[0], at, "the attribute's name")?;
    Ok(Value::Bool(ev.arg_attrs(a[1], at, "the second argument of `hasAttr`")?.contains_key(&name)))
}

fn intersect_attrs(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let names = ev.arg_attrs(a[0], at, "the first argument of `intersectAttrs`")?;
    let values = ev.arg_attrs(a[1], at, "the second argument of `intersectAttrs`")?;
    ev.pay_values(names.len().max(values.len()))?;
    let both = values.iter().filter(|(name, _)| names.contains_key(*name));
    Ok(Value::Attrs(Rc::new(both.map(|(name, slot)| (name.clone(), *slot)).collect())))
}

fn list_to_attrs(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut map = AttrMap::new();
    for item in ev.arg_list(a[0], at, "the argument of `listToAttrs`")?.iter() {
        let blame = ev.blame(*item, at);
        let pair = ev.arg_attrs(*item, at, "each element for `listToAttrs`")?;
        let need = |name: &str| {
            pair.get(name).copied().ok_or_else(|| {
                Fault::new(Class::Type, format!("an element for `listToAttrs` has no `{name}`"))
                    .at(blame)
                    .expected("a set with `name` and `value`")
            })
        };
        let (name, value) = (need("name")?, need("value")?);
        let key = ev.arg_string(name.thunk, at, "the `name` of an element for `listToAttrs`")?;
        ev.pay_values(1)?;
        // As in Nix, the first of two equal names wins. So the roster's check for duplicates never sees the second.
        map.entry(key).or_insert(Slot { thunk: value.thunk, span: ev.blame(name.thunk, blame) });
    }
    Ok(Value::Attrs(Rc::new(map)))
}

fn map_attrs(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let map = ev.arg_attrs(a[1], at, "the second argument of `mapAttrs`")?;
    let mut out = AttrMap::new();
    for (name, slot) in map.iter() {
        let key = ev.done(Value::Str(name.clone()), slot.span)?;
        let span = ev.blame(slot.thunk, at);
        let thunk = ev.delay_call(a[0], vec![key, slot.thunk], span)?;
        out.insert(name.clone(), Slot { thunk, span: slot.span });
    }
    Ok(Value::Attrs(Rc::new(out)))
}

fn remove_attrs(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut map = (*ev.arg_attrs(a[0], at, "the first argument of `removeAttrs`")?).clone();
    ev.pay_values(map.len())?;
    for name in ev.arg_list(a[1], at, "the second argument of `removeAttrs`")?.iter() {
        map.remove(&ev.arg_string(*name, at, "the name to remove")?);
    }
    Ok(Value::Attrs(Rc::new(map)))
}

fn zip_attrs_with(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut all: std::collections::BTreeMap<Rc<str>, Vec<ThunkId>> = Default::default();
    for item in ev.arg_list(a[1], at, "the second argument of `zipAttrsWith`")?.iter() {
        let map = ev.arg_attrs(*item, at, "each element for `zipAttrsWith`")?;
        ev.pay_values(map.len())?;
        for (name, slot) in map.iter() {
            all.entry(name.clone()).or_default().push(slot.thunk);
        }
    }
    let mut out = AttrMap::new();
    for (name, items) in all {
        let key = ev.done(Value::Str(name.clone()), at)?;
        let items = ev.done(list(items), at)?;
        let thunk = ev.delay_call(a[0], vec![key, items], at)?;
        out.insert(name, Slot { thunk, span: at });
    }
    Ok(Value::Attrs(Rc::new(out)))
}
