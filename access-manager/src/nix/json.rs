//! Turns values into JSON, as `nix-instantiate --eval --strict --json` prints it, and JSON into values.

use std::rc::Rc;

use serde_json::Value as Json;

use super::eval::{Evaluator, R};
use super::value::*;
use crate::diag::{Class, Fault, Span};

impl Evaluator<'_> {
    /// Forces the whole value. Functions and paths are refused (Nix would copy a path into its store).
    pub fn json(&mut self, value: &Value) -> R<Json> {
        let nowhere = Span { file: 0, start: 0, end: 0 };
        self.json_at(value, nowhere)
    }

    fn json_at(&mut self, value: &Value, at: Span) -> R<Json> {
        self.step(1)?;
        Ok(match value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(i) => Json::from(*i),
            Value::Float(f) => serde_json::Number::from_f64(*f).map_or(Json::Null, Json::Number),
            Value::Str(s) => Json::from(&**s),
            Value::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for item in items.iter() {
                    out.push(self.json_of(*item, at)?);
                }
                Json::Array(out)
            }
            Value::Attrs(map) if map.contains_key("__toString") => {
                Json::from(&*self.call_to_string(value, at)?)
            }
            Value::Attrs(map) => {
                let mut out = serde_json::Map::new();
                for (name, slot) in map.iter() {
                    out.insert(name.to_string(), self.json_of(slot.thunk, slot.span)?);
                }
                Json::Object(out)
            }
            other => {
                let fault =
                    Fault::new(Class::Unsupported, format!("{} cannot become JSON", other.kind())).at(at);
                return Err(fault.expected("text, numbers, true, false, null, lists and sets of these"));
            }
        })
    }

    fn json_of(&mut self, id: ThunkId, at: Span) -> R<Json> {
        let value = self.force(id, at)?;
        let blame = self.blame(id, at);
        self.nested(blame, |ev| ev.json_at(&value, blame))
    }

    /// serde_json bounds the nesting of the text that it parses (128 levels), so this recursion is bounded too.
    pub(super) fn value_of_json(&mut self, json: Json, at: Span) -> R<Value> {
        self.pay_values(1)?;
        Ok(match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(b),
            Json::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => Value::Int(i),
                (None, Some(f)) => Value::Float(f),
                (None, None) => {
                    return Err(Fault::new(Class::Type, "this number does not fit in 64 bits").at(at));
                }
            },
            Json::String(s) => Value::string(s),
            Json::Array(items) => {
                let mut out = Vec::with_capacity(items.len());
                for item in items {
                    let value = self.value_of_json(item, at)?;
                    out.push(self.done(value, at)?);
                }
                Value::List(Rc::new(out))
            }
            Json::Object(map) => {
                let mut out = AttrMap::new();
                for (name, item) in map {
                    let value = self.value_of_json(item, at)?;
                    let thunk = self.done(value, at)?;
                    out.insert(name.into(), Slot { thunk, span: at });
                }
                Value::Attrs(Rc::new(out))
            }
        })
    }
}
