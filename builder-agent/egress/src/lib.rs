//! The network of a guest, policed from outside of it.
//!
//! ```text
//! guest kernel ─ virtio-net (VMM) ─ frames, SOCK_SEQPACKET ─ this crate ─ frames, SOCK_STREAM ─ passt ─ sockets
//! ```
//!
//! Every frame between a VM and its user-mode network passes through a process that runs [`run`]. That process has three
//! sockets and nothing else: no name to look up, no file, no other socket. It decides frame by frame ([`Guard`]):
//! from the guest pass TCP and UDP to addresses, names and ports of the [`Policy`], and DNS, over both, to one resolver; from the
//! network pass the frames of connections that the guest has opened. Nothing connects inward. ARP and neighbour
//! solicitations are answered here, so that the user-mode network sees TCP and UDP only.
//!
//! Both sides are hostile: the guest is a stranger's build, and the network repeats what strangers' servers send. Every
//! table has a bound, and a frame that is not understood is dropped and counted. What the policy refuses is answered
//! at once (TCP reset, ICMP "administratively prohibited", DNS "no such name"), so that the program inside fails with a
//! clear error instead of waiting, and is reported as an [`Event`], as is every connection at its end.
//!
//! Read in this order: `policy` (what an operator says), `rules` (what follows for one address, port, name), `frames`
//! (bytes to headers), `flows`, `names` and `conversation` (what is remembered), `guard` (one frame), `relay` (the process).
//! Not here: who gets a network, processes and their jail (`sandbox`), text of settings (`settings`).

mod answers;
mod conversation;
mod dns;
mod events;
pub mod firewall;
mod flows;
mod frames;
mod guard;
mod names;
mod pace;
mod policy;
mod reason;
mod relay;
mod rules;

pub use events::{End, Event, Protocol};
pub use frames::MAX_FRAME;
pub use guard::{Guard, Side, Verdict};
pub use policy::{Limits, Link, Mac, Policy, PortRange};
pub use reason::{Dropped, Reason};
pub use relay::run;
