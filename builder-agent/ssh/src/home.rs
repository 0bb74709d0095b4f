//! The way into a member's home: what a client asks of its ssh server is asked of the sshd in the home.
//!
//! A connection that wants something of the home gets one ssh connection into it ([`lodging`]), and each of its channels one
//! there ([`session`], [`forward`]). This file decides who has a home, and what it is made with. Not here: homes themselves
//! (`homes`), and the commands of the box (`commands`).

use std::sync::Arc;
use std::time::Duration;

use builds::monthly::UsedUp;
use daemon::{Agent, Caller};
use homes::{Home, NixDoor, Stream, Terms};
use members::Member;
use members::settings::Id;

mod carry;
pub(crate) mod forward;
pub(crate) mod lodging;
pub(crate) mod session;

/// Why this member has no home on this box; `None` if they may come in.
pub(crate) fn closed_to(agent: &Agent, caller: &Caller) -> Option<String> {
    if let Some(bearer) = &caller.member.ticket {
        return Some(format!(
            "homes are for members only; you are here with the ticket `{}` of {}",
            bearer.ticket.name, bearer.maker.name
        ));
    }
    if let Some(why) = agent.homes.none_because() {
        return Some(format!("there are no homes on this box: {why}"));
    }
    let resolved = daemon::layers(&agent.config, &caller.member, &caller.options).resolve();
    if !resolved.effective().allow_home {
        let words = resolved.get(Id::AllowHome).level.words();
        return Some(format!("you have no home here: the setting `allow-home` is `false` in {words}"));
    }
    None
}

/// What the home of this member is made with, or why none is started now.
fn terms(agent: &Agent, caller: &Caller) -> Result<Terms, String> {
    let (config, member) = (&agent.config, &caller.member);
    if agent.realiser.scheduler.drained().is_some() && !has_one(agent, member) {
        return Err("the box is drained and starts no more homes; try again later".into());
    }
    month_is_over(agent, member)?;
    let effective = daemon::layers(config, member, &caller.options).resolve().effective();
    let least = |of_box: u64, limits: [Option<u64>; 2]| limits.into_iter().flatten().fold(of_box, u64::min);
    let (limits, homes) = (&member.limits, &config.homes);
    let vcpus = least(homes.vcpus.into(), [limits.max_cpus.map(u64::from), None]);
    let memory = least(homes.memory_mib.into(), [limits.max_memory_mib.map(u64::from), None]);
    let ttl = least(homes.ttl.as_secs(), [effective.home_ttl, None]);
    Ok(Terms {
        vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX),
        memory_mib: u32::try_from(memory).unwrap_or(u32::MAX),
        ttl: Duration::from_secs(ttl),
        dotfiles: effective.dotfiles,
        principal: caller.options.principal(member),
    })
}

fn has_one(agent: &Agent, member: &Member) -> bool {
    agent.homes.of(member).is_some()
}

/// As for builds: no home starts for somebody who has used up the processor time of the month.
fn month_is_over(agent: &Agent, member: &Member) -> Result<(), String> {
    let roster = agent.roster.borrow().clone();
    match UsedUp::of(&agent.ledger, &agent.config, &roster, member) {
        Some(over) if !has_one(agent, member) => {
            Err(format!("no home is started: {}. `ssh box usage` shows what was used", over.told()))
        }
        _ => Ok(()),
    }
}

/// The worker protocol for the Nix in homes, as their member.
pub(crate) fn nix_door(agent: &Arc<Agent>) -> NixDoor {
    let agent = agent.clone();
    Arc::new(move |home: Arc<Home>, stream: Stream| {
        let agent = agent.clone();
        tokio::spawn(async move {
            let (member, options) = (home.member.clone(), daemon::SessionOptions::default());
            let (reader, writer) = tokio::io::split(stream);
            let caller = Caller { home: Some(home), ..Caller::outside(member, 0, options) };
            // Its errors were told to the Nix in the home, and ends are logged.
            let _ = daemon::serve(Box::new(reader), Box::new(writer), agent, caller).await;
        });
    })
}
