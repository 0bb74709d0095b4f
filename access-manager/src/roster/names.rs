//! Lists of names, as in `shareWith = [ "bob" ];`.

use crate::diag::{Class, Fault, Span, quoted};
use crate::nix::{Evaluator, ThunkId, Value};

type R<T> = Result<T, Fault>;

/// A name in a list, and where it is written.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: String,
    pub at: Span,
}

/// Which list it is, for messages.
pub struct List<'a> {
    pub attribute: &'a str,
    /// The member or group that has it.
    pub of: &'a str,
    pub expected: &'a str,
    pub most: usize,
}

/// The names in order, as written: nothing is looked up here.
pub fn read(ev: &mut Evaluator, value: Value, id: ThunkId, at: Span, list: &List) -> R<Vec<Named>> {
    let title = format!("`{}` of {}", list.attribute, quoted(list.of));
    let wrong = |at: Span, found: &str| {
        Fault::new(Class::Roster, format!("{title} has the wrong type"))
            .at(at)
            .expected(list.expected)
            .found(found)
    };
    let items = match value {
        Value::List(items) => items,
        other => return Err(wrong(ev.blame(id, at), other.kind())),
    };
    if items.len() > list.most {
        return Err(Fault::new(Class::Limit, format!("{title} has too many names"))
            .at(at)
            .expected(format!("at most {}", list.most))
            .found(items.len().to_string()));
    }
    let mut names = Vec::with_capacity(items.len());
    for item in items.iter() {
        let value = ev.force(*item, at)?;
        let at = ev.blame(*item, at);
        match value {
            Value::Str(name) => names.push(Named { name: name.to_string(), at }),
            other => return Err(wrong(at, other.kind())),
        }
    }
    Ok(names)
}
