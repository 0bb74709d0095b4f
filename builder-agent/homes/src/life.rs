//! The life of one home: starting, open, ended.
//!
//! One task for each home follows it: it ends the home when it was empty for its time, when the member has left the roster,
//! and when somebody asks for it. A home that ends leaves the list first, so that whoever comes then gets a new one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use egress::Event;
use ledger::{Resource, Unit};
use members::Member;
use sandbox::home::HomeEnd;
use sandbox::{Cancel, SandboxError, Usage};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::home::{self, Home};
use crate::machines::{CpuMeter, Machines};
use crate::{Alive, Inner, Listed, NixDoor, Terms};

#[derive(Clone)]
pub(crate) enum State {
    Starting,
    Open(Arc<Home>),
    /// It never opened.
    Failed(Arc<str>),
    Ended(Arc<str>),
}

/// The place of one member's home in the list.
pub(crate) struct Place {
    pub member: Arc<Member>,
    pub terms: Terms,
    pub state: watch::Sender<State>,
    /// Changed under the lock of the list only.
    visits: watch::Sender<usize>,
    since: u64,
    began: Instant,
    /// Nothing is left of the machine.
    pub gone: watch::Sender<bool>,
    /// Ends the machine.
    cancel: Cancel,
    /// Why somebody wants the end.
    wanted: watch::Sender<Option<Arc<str>>>,
    /// Seconds that are charged already.
    charged: Mutex<f64>,
}

impl Place {
    pub fn new(member: &Arc<Member>, terms: &Terms) -> Arc<Self> {
        Arc::new(Self {
            member: member.clone(),
            terms: terms.clone(),
            state: watch::Sender::new(State::Starting),
            visits: watch::Sender::new(0),
            since: ::roster::date::now(),
            began: Instant::now(),
            gone: watch::Sender::new(false),
            cancel: Cancel::new(),
            wanted: watch::Sender::new(None),
            charged: Mutex::new(0.0),
        })
    }

    pub fn come(&self) {
        self.visits.send_modify(|visits| *visits += 1);
    }

    pub fn go(&self) {
        self.visits.send_modify(|visits| *visits -= 1);
    }

    pub fn visits(&self) -> usize {
        *self.visits.borrow()
    }

    pub fn end(&self, why: &str) {
        self.wanted.send_if_modified(|wanted| {
            let first = wanted.is_none();
            wanted.get_or_insert_with(|| why.into());
            first
        });
    }

    pub fn listed(&self) -> Listed {
        Listed {
            member: self.member.clone(),
            since: self.since,
            visits: self.visits(),
            vcpus: self.terms.vcpus,
            memory_mib: self.terms.memory_mib,
        }
    }

    /// Charges the time since the last charge.
    fn charge_time(&self, homes: &Inner) {
        let mut charged = self.charged.lock().unwrap_or_else(PoisonError::into_inner);
        let lived = self.began.elapsed().as_secs_f64();
        let millis = ((lived - *charged) * Unit::Seconds.parts() as f64) as u64;
        *charged = lived;
        drop(charged);
        let amounts = [
            (Resource::HomeSeconds, millis),
            (Resource::MemoryMibSeconds, millis.saturating_mul(self.terms.memory_mib.into())),
        ];
        homes.parts.ledger.charge(&self.terms.principal, amounts);
    }
}

/// Starts the home of this place, and follows it to its end.
pub(crate) async fn live(alive: Alive, machines: Arc<dyn Machines>, nix: NixDoor) {
    let (homes, place) = (&alive.homes, alive.place.clone());
    let member = place.member.name.clone();
    let Terms { vcpus, memory_mib, .. } = place.terms;
    tracing::info!(%member, vcpus, memory_mib, "a home is started");
    let starting = home::start(homes, machines, &place.member, &place.terms, &place.cancel);
    // One wait for all stages: it knows since when nobody is in the home.
    let unwanted = unwanted(homes, &place);
    tokio::pin!(starting, unwanted);
    let mut why: Option<Arc<str>> = None;
    let started = loop {
        tokio::select! {
            started = &mut starting => break started,
            reason = &mut unwanted, if why.is_none() => {
                leave(homes, &place, State::Failed(reason.clone()));
                why = Some(reason);
                place.cancel.cancel();
            }
        }
    };
    let (home, machine) = match started {
        Ok(started) => started,
        Err(error) => {
            tracing::error!(%member, error, "a home could not be started");
            return leave(homes, &place, State::Failed(error.into()));
        }
    };
    let mut cpu = Cpu { meter: machine.cpu_meter(), charged: Duration::ZERO };
    let (follower, cancel) = (member.clone(), place.cancel.clone());
    let running =
        homes.parts.threads.alone("home", move || machine.run(&mut |event| tell(&event, &follower), &cancel));
    tokio::pin!(running);
    let opening = home.open(nix, homes.parts.beside.clone());
    tokio::pin!(opening);
    let (mut is_opening, mut is_open) = (true, false);
    let mut charge = tokio::time::interval(homes.parts.charge_every);
    let (end, usage) = loop {
        tokio::select! {
            ended = &mut running => break ended.unwrap_or_else(|lost| {
                (HomeEnd::Failed(SandboxError::Unavailable { why: lost.to_string() }), Usage::default())
            }),
            opened = &mut opening, if is_opening => {
                is_opening = false;
                match opened {
                    Ok(()) if why.is_none() => {
                        is_open = true;
                        let seconds = place.began.elapsed().as_secs_f64();
                        tracing::info!(%member, seconds, "a home is open");
                        place.state.send_replace(State::Open(home.clone()));
                    }
                    // It ends already.
                    Ok(()) => {}
                    Err(error) => place.end(&error.to_string()),
                }
            }
            reason = &mut unwanted, if why.is_none() => {
                // From now on nobody comes in here.
                leave(homes, &place, ended(is_open, &reason));
                why = Some(reason);
                place.cancel.cancel();
            }
            _ = charge.tick() => {
                place.charge_time(homes);
                cpu.charge_until_now(homes, &place);
                if let Err(why) = (homes.parts.may_stay)(&place.member) {
                    place.end(&why);
                }
            }
        }
    };
    let why = why.unwrap_or_else(|| said(&end));
    place.charge_time(homes);
    cpu.charge(usage.cpu, homes, &place);
    homes.parts.ledger.charge(&place.terms.principal, [(Resource::NetworkBytes, usage.network)]);
    let (cpu_seconds, peak_memory) = (usage.cpu.as_secs_f64(), usage.peak_memory);
    let seconds = place.began.elapsed().as_secs_f64();
    tracing::info!(%member, %why, seconds, cpu_seconds, peak_memory, "a home has ended");
    leave(homes, &place, ended(is_open, &why));
}

/// The processor time of one machine.
struct Cpu {
    meter: Option<CpuMeter>,
    charged: Duration,
}

impl Cpu {
    fn charge_until_now(&mut self, homes: &Inner, place: &Place) {
        if let Some(used) = self.meter.as_ref().and_then(|meter| meter()) {
            self.charge(used, homes, place);
        }
    }

    /// Charges what it has used since the last charge, in whole milliseconds. `used`: from its start.
    fn charge(&mut self, used: Duration, homes: &Inner, place: &Place) {
        let millis = used.saturating_sub(self.charged).as_millis() as u64;
        self.charged += Duration::from_millis(millis);
        homes.parts.ledger.charge(&place.terms.principal, [(Resource::CpuSeconds, millis)]);
    }
}

fn ended(was_open: bool, why: &Arc<str>) -> State {
    if was_open { State::Ended(why.clone()) } else { State::Failed(why.clone()) }
}

/// Takes the place out of the list; those who visit learn why.
fn leave(homes: &Inner, place: &Arc<Place>, state: State) {
    let mut open = homes.lock();
    if open.places.get(&place.member.id).is_some_and(|there| Arc::ptr_eq(there, place)) {
        open.places.remove(&place.member.id);
    }
    drop(open);
    place.state.send_replace(state);
}

fn said(end: &HomeEnd) -> Arc<str> {
    match end {
        HomeEnd::Cancelled => "it was ended".into(),
        HomeEnd::Failed(error) => error.to_string().into(),
    }
}

/// Waits for a reason to end the home.
async fn unwanted(homes: &Arc<Inner>, place: &Arc<Place>) -> Arc<str> {
    let mut roster = homes.parts.roster.clone();
    let (mut visits, mut wanted) = (place.visits.subscribe(), place.wanted.subscribe());
    let mut empty_since = None;
    loop {
        if roster.borrow_and_update().current(&place.member).is_none() {
            return place.member.left().into();
        }
        if let Some(why) = wanted.borrow_and_update().clone() {
            return why;
        }
        match *visits.borrow_and_update() {
            0 => _ = empty_since.get_or_insert_with(Instant::now),
            _ => empty_since = None,
        }
        let goes = empty_since.map(|since| since + place.terms.ttl);
        tokio::select! {
            _ = roster.changed() => {}
            _ = visits.changed() => {}
            _ = wanted.changed() => {}
            () = sleep_until(goes.unwrap_or_else(Instant::now)), if goes.is_some() => {
                // Whoever came at the last moment has counted under this lock.
                let mut open = homes.lock();
                if place.visits() == 0 {
                    open.places.remove(&place.member.id);
                    return "nobody was in it for its time (`home-ttl`)".into();
                }
            }
        }
    }
}

/// A line in the agent's log for each connection of the home.
fn tell(event: &Event, member: &str) {
    match event {
        Event::Connection { protocol, name, address, port, up, down, millis, end } => {
            let name = name.as_deref().unwrap_or_default();
            tracing::info!(member, %protocol, name, %address, port, up, down, millis, ?end, "a home's connection has ended");
        }
        Event::Refused { protocol, name, address, port, reason, times } => {
            let name = name.as_deref().unwrap_or_default();
            tracing::info!(member, %protocol, name, %address, port, times, %reason, "a home's connection was refused");
        }
        Event::RefusedMore { times } => {
            tracing::info!(member, times, "more connections of a home were refused");
        }
        Event::Total { up, down, connections, refused, .. } => {
            tracing::info!(member, up, down, connections, refused, "a home's network has ended");
        }
    }
}
