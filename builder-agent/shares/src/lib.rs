//! What members share, and how it is divided: threads for work that blocks, and memory that requests take.
//!
//! Everything here belongs to an owner, a member's id, so that whoever asks for much waits for themselves and for nobody
//! else. Both parts count; neither knows what the work is.
//! Not here: which limits a box has (`settings`), and places for builds (`builds::slots`).

pub mod budget;
pub mod threads;

use tokio::sync::watch;

/// Ready when a flag turns true, or when nobody is left who could set it.
pub async fn turned(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
