//! What members share, and how it is divided: threads for work that blocks, and memory that requests take.
//!
//! Each piece of work and each charge has an owner, the id of a member. A member who asks for much makes only that
//! member wait. Both parts count; neither knows what the work is.
//! Not here: which limits a box has (`settings`), and places for builds (`builds::schedule`).

pub mod budget;
pub mod threads;

use tokio::sync::watch;

/// Ready when a flag turns true, or when nobody is left who could set it.
pub async fn turned(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
