//! What a member or a group may have besides keys: role, limits, date.

use ::roster::{Day, LIMITS, Limit, MemberLimits, Role};

use super::{R, Reader};
use crate::diag::{Class, Fault, Span, did_you_mean, one_of, quoted};
use crate::nix::{ThunkId, Value};

/// For whom limits are.
#[derive(Clone, Copy)]
pub(super) enum Whose {
    Member,
    /// For all members of a group together.
    Group,
    /// For each member of a group that has none of its own.
    EachOf,
}

impl Whose {
    fn attribute(self) -> &'static str {
        match self {
            Whose::EachOf => "memberLimits",
            _ => "limits",
        }
    }
}

impl Reader<'_, '_> {
    pub(super) fn role(&mut self, value: Value, at: Span, id: ThunkId) -> R<Role> {
        let blame = self.ev.blame(id, at);
        match &value {
            Value::Str(s) if &**s == "member" => Ok(Role::Member),
            Value::Str(s) if &**s == "maintainer" => Ok(Role::Maintainer),
            other => Err(Fault::new(Class::Roster, "there is no such role")
                .at(blame)
                .expected("\"member\" or \"maintainer\"")
                .found(match other {
                    Value::Str(s) => quoted(s),
                    other => other.kind().to_owned(),
                })),
        }
    }

    pub(super) fn limits(&mut self, value: Value, at: Span, whose: Whose) -> R<MemberLimits> {
        let Value::Attrs(map) = value else {
            return Err(Fault::new(
                Class::Roster,
                format!("`{}` must be an attribute set", whose.attribute()),
            )
            .at(at)
            .expected("a set such as `{ maxJobs = 2; }`")
            .found(value.kind()));
        };
        let mut limits = MemberLimits::default();
        for (name, slot) in map.iter() {
            let limit = known_limit(name, slot.span)?;
            if matches!(whose, Whose::Group) && !limit.shared {
                return Err(Fault::new(
                    Class::Roster,
                    format!("the limit {} cannot be shared", quoted(name)),
                )
                .at(slot.span)
                .hint(format!("write `memberLimits.{} = …;`, which counts for each member", limit.name)));
            }
            let Limit { smallest, largest, unit, .. } = limit;
            let value = self.ev.force(slot.thunk, slot.span)?;
            let range = format!("a whole number of {unit}, from {smallest} to {largest}");
            let fault = |found: String| {
                Fault::new(Class::Roster, format!("the limit {} has no such value", quoted(name)))
                    .expected(range.clone())
                    .found(found)
            };
            let blame = self.ev.blame(slot.thunk, slot.span);
            match value {
                Value::Int(i) if (*smallest..=*largest).contains(&i) => limits.set(name, i),
                Value::Int(i) => return Err(fault(i.to_string()).at(blame)),
                other => return Err(fault(other.kind().into()).at(blame)),
            }
        }
        Ok(limits)
    }

    pub(super) fn expires(&mut self, value: Value, at: Span, id: ThunkId) -> R<Option<Day>> {
        let blame = self.ev.blame(id, at);
        match &value {
            Value::Null => Ok(None),
            Value::Str(s) if Day::parse(s).is_some() => Ok(Day::parse(s)),
            other => Err(Fault::new(Class::Roster, "`expires` is not a date")
                .at(blame)
                .expected("a day such as \"2027-01-31\" (YYYY-MM-DD), or null")
                .found(match other {
                    Value::Str(s) => quoted(s),
                    other => other.kind().to_owned(),
                })),
        }
    }
}

fn known_limit(name: &str, at: Span) -> R<&'static Limit> {
    if let Some(limit) = LIMITS.iter().find(|limit| limit.name == name) {
        return Ok(limit);
    }
    let names: Vec<&str> = LIMITS.iter().map(|limit| limit.name).collect();
    // `max-jobs`, as roster.json and the agent's configuration have it, is what people try first.
    let camel = name.replace('-', "");
    let fault = Fault::new(Class::Roster, format!("there is no limit {}", quoted(name)))
        .at(at)
        .expected(one_of(&names))
        .found(quoted(name));
    Err(fault.did_you_mean(did_you_mean(&camel, names.iter().copied())))
}
