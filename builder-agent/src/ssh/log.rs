//! `ssh <box> log <path>`: the log of a build, on stdout.
//!
//! Nix has `nix log`, but its stores behind ssh cannot ask for a log (`getBuildLogExact` is unsupported in
//! src/libstore/ssh-store.cc, and neither protocol has an operation), so this command stands in.

use std::sync::Arc;

use nix_derivation::StorePath;
use russh::Channel;
use russh::server::Msg;
use tokio::io::AsyncWriteExt;

use crate::House;
use crate::roster::Member;

/// The one kind of extended data there is (RFC 4254, 5.2).
pub(super) const STDERR: u32 = 1;

/// Prints the log of `path` if this member may read it, then closes the channel.
pub(super) async fn show(mut channel: Channel<Msg>, house: Arc<House>, member: Arc<Member>, path: StorePath) {
    let status = match print(&mut channel, &house, &member, &path).await {
        Ok(true) => 0,
        Ok(false) => {
            let line = format!(
                "error: there is no log of '{}' here that you may read: logs are kept of builds that this box made for \
                 you, or of things everybody may see\n",
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
    let mut writer = channel.make_writer();
    tokio::io::copy(&mut tokio::fs::File::from_std(file), &mut writer).await?;
    writer.flush().await?;
    Ok(true)
}
