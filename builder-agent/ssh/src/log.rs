//! `ssh <box> log <path>`: the log of a build, on stdout.
//!
//! Nix has `nix log`, but its stores behind ssh cannot ask for a log (`getBuildLogExact` is unsupported in
//! src/libstore/ssh-store.cc, and neither protocol has an operation), so this command stands in.

use std::sync::Arc;

use nix_derivation::StorePath;
use russh::Channel;
use russh::server::Msg;
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use daemon::House;
use members::Member;

/// The one kind of extended data there is (RFC 4254, 5.2).
pub(super) const STDERR: u32 = 1;

/// Read of a log at once.
const PIECE: usize = 64 << 10;

/// Prints the log of `path` if this member may read it, then closes the channel.
pub(super) async fn show(mut channel: Channel<Msg>, house: Arc<House>, member: Arc<Member>, path: StorePath) {
    let status = match print(&mut channel, &house, &member, &path).await {
        Ok(true) => 0,
        Ok(false) => {
            let line = format!(
                "error: there is no log of '{}' here that you may read: the box keeps logs of builds \
                 that it ran for you and of builds that everybody may see\n",
                path.to_absolute_path()
            );
            let _ = channel.extended_data_bytes(STDERR, line).await;
            1
        }
        Err(error) => {
            tracing::info!(member = %member.name, %error, "a log was not read to its end");
            1
        }
    };
    let _ = channel.exit_status(status).await;
    let _ = channel.eof().await;
    let _ = channel.close().await;
}

async fn print(
    channel: &mut Channel<Msg>,
    house: &House,
    member: &Member,
    path: &StorePath,
) -> std::io::Result<bool> {
    let drv = if path.is_derivation() {
        path.clone()
    } else {
        // Only of a path that is valid for this member do we know where it came from.
        let view = house.view_of(member, &house.roster.borrow());
        match view.info(path).and_then(|info| info.deriver.clone()) {
            Some(drv) => drv,
            None => return Ok(false),
        }
    };
    let Some(file) = house.kept.find(&member.id, &drv) else { return Ok(false) };
    let (workers, file, mut at) = (house.threads.of(&member.id), Arc::new(file), 0);
    let mut writer = PatientWriter::new(channel.make_writer(), house.config.limits.client_stall);
    loop {
        let piece = workers.read_at(&file, at, PIECE).await.map_err(std::io::Error::other)??;
        if piece.is_empty() {
            writer.flush().await?;
            return Ok(true);
        }
        at += piece.len() as u64;
        writer.write_all(&piece).await?;
    }
}
