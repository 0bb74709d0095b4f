//! `shareWith`: whose store paths a member is willing to see and to show. It takes both: a name that one side lists
//! alone gives nothing away.

use std::collections::{BTreeMap, BTreeSet};

use ::roster::MAX_SHARES;

use super::Member;
use crate::diag::{Class, Fault, Span, did_you_mean, quoted};
use crate::nix::{Evaluator, ThunkId, Value};

type R<T> = Result<T, Fault>;

/// A name in somebody's `shareWith`, and where it is written.
pub struct Share {
    pub with: String,
    pub at: Span,
}

/// Reads `shareWith = [ "bob" ];` of `member`.
pub fn read(ev: &mut Evaluator, value: Value, id: ThunkId, at: Span, member: &str) -> R<Vec<Share>> {
    let expected = "a list of members' names such as `[ \"bob\" ]`";
    let wrong = |at: Span, found: String| {
        Fault::new(Class::Roster, format!("`shareWith` of {} has the wrong type", quoted(member)))
            .at(at)
            .expected(expected)
            .found(found)
    };
    let items = match value {
        Value::List(items) => items,
        other => return Err(wrong(ev.blame(id, at), other.kind().to_owned())),
    };
    if items.len() > MAX_SHARES {
        return Err(Fault::new(Class::Limit, format!("{} shares with too many members", quoted(member)))
            .at(at)
            .expected(format!("at most {MAX_SHARES}"))
            .found(items.len().to_string()));
    }
    let mut shares = Vec::with_capacity(items.len());
    for item in items.iter() {
        let value = ev.force(*item, at)?;
        let at = ev.blame(*item, at);
        match value {
            Value::Str(name) if *name == *member => {
                return Err(Fault::new(Class::Roster, format!("{} shares with itself", quoted(member)))
                    .at(at)
                    .expected("names of other members"));
            }
            Value::Str(name) => shares.push(Share { with: name.to_string(), at }),
            other => return Err(wrong(at, other.kind().to_owned())),
        }
    }
    Ok(shares)
}

/// Puts what was read into the members, once all of them are known. Returns faults by member, and warnings.
///
/// A name that is not in the roster does not count, and its owner stays: otherwise who leaves would keep out all who
/// shared with them.
pub fn settle(
    members: Vec<&mut Member>,
    shares: &BTreeMap<String, Vec<Share>>,
) -> (Vec<(String, Fault)>, Vec<String>) {
    let names: BTreeSet<String> = members.iter().map(|member| member.name.clone()).collect();
    let lists = |one: &str, other: &str| {
        shares.get(one).is_some_and(|list| list.iter().any(|share| share.with == other))
    };
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    for member in members {
        let list = shares.get(&member.name).map_or(&[][..], Vec::as_slice);
        let (known, unknown): (Vec<&Share>, Vec<&Share>) =
            list.iter().partition(|share| names.contains(&share.with));
        faults.extend(
            unknown.into_iter().map(|share| (member.name.clone(), stranger(&member.name, share, &names))),
        );
        let with: BTreeSet<&str> = known.into_iter().map(|share| share.with.as_str()).collect();
        for other in with.iter().filter(|other| !lists(other, &member.name)) {
            warnings.push(format!(
                "{} shares with {}, but not the other way round: nothing is shared until both list each other",
                quoted(&member.name),
                quoted(other)
            ));
        }
        member.share_with = with.into_iter().map(str::to_owned).collect();
    }
    (faults, warnings)
}

fn stranger(who: &str, share: &Share, names: &BTreeSet<String>) -> Fault {
    let fault = Fault::new(
        Class::Roster,
        format!("{} shares with {}, who is not in this roster", quoted(who), quoted(&share.with)),
    )
    .at(share.at);
    match did_you_mean(&share.with, names.iter().map(String::as_str)) {
        Some(near) => fault.hint(format!("did you mean {}?", quoted(near))),
        None => fault.expected("names of this roster").hint("remove former members from `shareWith` too"),
    }
}
