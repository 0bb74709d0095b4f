//! Members against members: Mallory sends everything that she can, and other members do not notice.
//!
//! Each test runs a real agent and real logins. If stock Nix can carry out the attack, `clients/forged.rs`
//! does it with every version; the messages here are those that no stock client sends. `docs/design/trust.md`
//! names these tests as its proofs.

mod collisions;
mod envelope;
mod existence;
mod existence_serve;
mod full_disk;
mod heavy_derivations;
mod limits;
mod memory;
mod memory_lists;
mod names;
mod published;
mod realisations;
mod removal;
mod reuse;
mod sharing;
mod signing;
mod stalls;
mod strangers;
mod tickets;
mod timing;
mod twins;
mod withdrawn;
