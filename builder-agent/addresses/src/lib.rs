//! What an address of the internet protocols is: public or not, the box's own, inside of a network, another form of
//! an IPv4 address.
//!
//! All of this is decided from the address alone. Nothing is looked up, and nothing is sent.
//! Not here: who may reach which address (`net` for the box itself, `egress` for guests, `ssh::gate` for strangers).

mod network;
mod public;

pub use network::{Network, first_of_block};
pub use public::{embedded_v4, is_own, is_public};
