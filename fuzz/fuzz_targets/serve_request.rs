#![no_main]
//! Any bytes as requests of the serve protocol, and their bodies. The first byte chooses the version.

use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncReadExt;
use wire::serve::{Answer, Connection, Response, version};
use nix::{BuildResult, BuildStatus};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut conn = Connection::after_handshake(rest, tokio::io::sink(), version(1 + first % 8), 1 << 30);
        while let Ok(Some(_)) = conn.next_request().await {
            let Some(op) = conn.pending() else { return };
            let mut buffer = [0; 4096];
            while conn.body().read(&mut buffer).await.is_ok_and(|got| got > 0) {}
            let answer = match op.info().answer {
                Answer::One => Response::Refused,
                Answer::Paths => Response::Paths(Vec::new()),
                Answer::Status => Response::Status(BuildStatus::MiscFailure, "no".into()),
                Answer::BuildResult => Response::BuildResult(BuildResult::new(BuildStatus::MiscFailure, "no")),
                Answer::PathInfos => {
                    conn.reply_infos().await.expect("infos").finish().await.expect("nothing to send");
                    continue;
                }
                Answer::Export => {
                    conn.reply_export().await.expect("an export").finish().await.expect("nothing to send");
                    continue;
                }
                // There is no NAR to answer with.
                Answer::Nar => return,
            };
            if conn.reply(&answer).await.is_err() {
                return;
            }
        }
    });
});
