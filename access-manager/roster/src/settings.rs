//! Settings on levels: how a member wants builds to be done, as far as the limits allow.
//!
//! [`SETTINGS`] is the only list: name, kind, default, levels and meaning of each. The configuration of the box, the
//! roster and the variables of clients are read by it, and the table in `docs/reference/settings.md` is made from it.
//! A [`Layer`] is what one level says. [`Layers::resolve`] makes of all layers one value for each setting, and the
//! reason. Limits are something else: no setting raises one.
//!
//! ```text
//! table.rs      the settings, and names of other services that have no meaning here
//! value.rs      a value, from JSON and from the text of a variable
//! layer.rs      what one level says
//! variables.rs  BARN_… and NIXBUILDNET_…, from an ssh client and from a derivation
//! resolve.rs    which level wins, and why
//! ```
//! Not here: what a setting does (the agent), and who may be in which group.

mod layer;
mod resolve;
mod table;
mod value;
mod variables;

pub use layer::Layer;
pub use resolve::{Effective, Layers, Resolved, Settled, Verdict, Vote};
pub use table::{Id, Kind, Level, SETTINGS, Setting, Unknown, find, markdown};
pub use value::{MAX_WORDS, Value, is_archive};
pub use variables::{Variables, is_setting};
