//! `shareWith`: whose store paths a member is willing to see and to show. It takes both: a name that one side lists
//! alone gives nothing away.

use std::collections::{BTreeMap, BTreeSet};

use ::roster::MAX_SHARES;

use super::Member;
use super::names::{self, List, Named};
use crate::diag::{Class, Fault, Span, quoted};
use crate::nix::{Evaluator, ThunkId, Value};

type R<T> = Result<T, Fault>;

/// Reads `shareWith = [ "bob" ];` of `member`.
pub fn read(ev: &mut Evaluator, value: Value, id: ThunkId, at: Span, member: &str) -> R<Vec<Named>> {
    let expected = "a list of members' names such as `[ \"bob\" ]`";
    let list = List { attribute: "shareWith", of: member, expected, most: MAX_SHARES };
    let shares = names::read(ev, value, id, at, &list)?;
    match shares.iter().find(|share| share.name == member) {
        None => Ok(shares),
        Some(own) => Err(Fault::new(Class::Roster, format!("{} shares with itself", quoted(member)))
            .at(own.at)
            .expected("names of other members")),
    }
}

/// Puts what was read into the members, once all of them are known. `near` gives the name that was probably meant.
/// Returns faults by member, and warnings.
///
/// A name that is not in the roster does not count, and its owner stays: otherwise who leaves would keep out all who
/// shared with them.
pub fn settle(
    members: Vec<&mut Member>,
    shares: &BTreeMap<String, Vec<Named>>,
    mut near: impl for<'n> FnMut(&str, &'n BTreeSet<String>) -> Option<&'n str>,
) -> (Vec<(String, Fault)>, Vec<String>) {
    let names: BTreeSet<String> = members.iter().map(|member| member.name.clone()).collect();
    let lists = |one: &str, other: &str| {
        shares.get(one).is_some_and(|list| list.iter().any(|share| share.name == other))
    };
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    for member in members {
        let list = shares.get(&member.name).map_or(&[][..], Vec::as_slice);
        let (known, unknown): (Vec<&Named>, Vec<&Named>) =
            list.iter().partition(|share| names.contains(&share.name));
        faults.extend(
            unknown
                .into_iter()
                .map(|share| (member.name.clone(), stranger(&member.name, share, near(&share.name, &names)))),
        );
        let with: BTreeSet<&str> = known.into_iter().map(|share| share.name.as_str()).collect();
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

fn stranger(who: &str, share: &Named, near: Option<&str>) -> Fault {
    let fault = Fault::new(
        Class::Roster,
        format!("{} shares with {}, who is not in this roster", quoted(who), quoted(&share.name)),
    )
    .at(share.at);
    match near {
        Some(near) => fault.hint(format!("did you mean {}?", quoted(near))),
        None => fault.expected("names of this roster").hint("remove former members from `shareWith` too"),
    }
}
