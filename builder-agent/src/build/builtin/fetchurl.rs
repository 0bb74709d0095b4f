//! `builtin:fetchurl`: one file from the network, whose hash the derivation knows.
//!
//! Source: Nix, src/libstore/builtins/fetchurl.cc. The URL is the derivation's, so it is a stranger's: `net` connects to
//! public addresses only and bounds everything; the hash is checked like that of any fixed output.
//! Not here: `netrc` and hashed mirrors (the box has neither), `file:` (nothing of the box is anybody's input).

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::Duration;

use nix_derivation::StorePath;
use sandbox::{Cancel, Limits};
use store::{Ingest, Ingested, View};
use tokio::runtime::Handle;
use url::Url;

use crate::build::log::LogWriter;
use crate::build::{Failure, Recipe};
use crate::net::{Body, HttpClient, HttpError, Want};

/// Attempts while the server or the network is in trouble (Nix: `download-attempts`), and the wait after the first.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Largest dictionary of an xz file, in KiB: that of `xz -9`, with room for the decoder.
const MAX_XZ_KIB: u32 = 80 << 10;
/// How soon a cancelled download ends.
const GLANCE: Duration = Duration::from_millis(200);
const PIECE: usize = 128 << 10;

/// Downloads the output. `scan_for` are the paths that may not occur in it.
pub(in crate::build) fn fetch(
    recipe: &Recipe,
    view: &View,
    http: &HttpClient,
    limits: &Limits,
    cancel: &Cancel,
    scan_for: &[StorePath],
    log: &mut LogWriter,
) -> Result<Ingested, Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    let refused = |why: &str| Failure::rejected(format!("cannot build '{drv}': {why}"));
    if !recipe.is_fixed() {
        return Err(refused("'builtin:fetchurl' must be a fixed-output derivation"));
    }
    let url = recipe.text("url").ok_or_else(|| refused("attribute 'url' missing"))?;
    let url =
        Url::parse(&url).map_err(|e| refused(&format!("its url '{}' is none: {e}", url.escape_debug())))?;
    let job = Job { recipe, view, limits, cancel, scan_for };
    let seconds = limits.wall.unwrap_or(Duration::MAX).as_secs();
    let mut wait = FIRST_WAIT;
    for attempt in 1.. {
        log.write(format!("downloading '{url}'\n").as_bytes());
        tracing::info!(%drv, host = url.host_str(), attempt, member = %view.member(), "builtin:fetchurl downloads");
        // This thread is the build's own; it may block, and the runtime's other threads drive the connection.
        let fetched = Handle::current().block_on(async {
            let work = tokio::time::timeout(Duration::from_secs(seconds), job.download(http, &url));
            tokio::select! {
                biased;
                () = cancelled(cancel) => Err(Stop::Failed(Failure::cancelled(&recipe.drv_path))),
                done = work => done.unwrap_or_else(|_| Err(Stop::Failed(Failure::new(
                    wire::types::BuildStatus::TimedOut,
                    format!("fetching '{url}' for '{drv}' timed out after {seconds} seconds"),
                )))),
            }
        });
        match fetched {
            Ok(ingested) => return Ok(ingested),
            Err(Stop::Failed(failure)) => return Err(failure),
            Err(Stop::Http(error)) => {
                log.write(format!("error: {error}\n").as_bytes());
                if attempt >= ATTEMPTS || !error.is_passing() || cancel.wait(wait) {
                    return Err(Failure::transient(format!("builder for '{drv}' failed: {error}")));
                }
                wait *= 2;
            }
        }
    }
    unreachable!("the last attempt returned")
}

/// Ready when the build is no longer wanted. A flag for threads, so it is looked at now and then.
async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(GLANCE).await;
    }
}

/// Why an attempt gave nothing.
enum Stop {
    /// Another may.
    Http(HttpError),
    Failed(Failure),
}

struct Job<'a> {
    recipe: &'a Recipe,
    view: &'a View,
    limits: &'a Limits,
    cancel: &'a Cancel,
    scan_for: &'a [StorePath],
}

impl Job<'_> {
    fn trouble(&self, error: &dyn std::fmt::Display) -> Stop {
        let drv = self.recipe.drv_path.to_absolute_path();
        Stop::Failed(Failure::transient(format!("the box cannot store what it fetches for '{drv}': {error}")))
    }

    fn set(&self, attribute: &str) -> bool {
        self.recipe.text(attribute).is_some_and(|value| value == "1")
    }

    async fn download(&self, http: &HttpClient, url: &Url) -> Result<Ingested, Stop> {
        let mut body =
            http.get(url, Want { max_bytes: self.limits.output_bytes }).await.map_err(Stop::Http)?;
        let unpack = self.set("unpack");
        if let (Some(length), false) = (body.length(), unpack) {
            let mut nar = NarFile::start(self.ingest()?, length, self.set("executable"))
                .map_err(|e| self.trouble(&e))?;
            pour(&mut body, |piece| nar.write(piece)).await.map_err(|stop| self.of(stop))?;
            return self.finish(nar.end().map_err(|e| self.trouble(&e))?);
        }
        // A NAR begins with its length, and the decoder wants to pull: the whole of it first, in a file without a name.
        let mut file = tempfile::tempfile().map_err(|e| self.trouble(&e))?;
        pour(&mut body, |piece| file.write_all(piece)).await.map_err(|stop| self.of(stop))?;
        let length = file.stream_position().map_err(|e| self.trouble(&e))?;
        file.rewind().map_err(|e| self.trouble(&e))?;
        if unpack {
            return self.unpacked(file, url);
        }
        let mut nar =
            NarFile::start(self.ingest()?, length, self.set("executable")).map_err(|e| self.trouble(&e))?;
        let mut piece = vec![0; PIECE];
        loop {
            let n = file.read(&mut piece).map_err(|e| self.trouble(&e))?;
            if n == 0 {
                return self.finish(nar.end().map_err(|e| self.trouble(&e))?);
            }
            nar.write(&piece[..n]).map_err(|e| self.trouble(&e))?;
        }
    }

    /// `unpack`: the file is a NAR, or the xz of one.
    fn unpacked(&self, file: File, url: &Url) -> Result<Ingested, Stop> {
        let drv = self.recipe.drv_path.to_absolute_path();
        let broken = |e: &dyn std::fmt::Display| {
            Stop::Failed(Failure::output(format!("cannot unpack '{url}' for '{drv}': {e}")))
        };
        let mut from: Box<dyn Read> = match url.path().ends_with(".xz") {
            true => Box::new(lzma_rust2::XzReader::new_mem_limit(io::BufReader::new(file), true, MAX_XZ_KIB)),
            false => Box::new(file),
        };
        let mut ingest = self.ingest()?;
        let mut piece = vec![0; PIECE];
        let mut left = self.limits.output_bytes;
        loop {
            let n = from.read(&mut piece).map_err(|e| broken(&e))?;
            if n == 0 {
                return ingest.finish().map_err(|e| broken(&e));
            }
            left = left
                .checked_sub(n as u64)
                .ok_or_else(|| broken(&format!("it is larger than {} bytes", self.limits.output_bytes)))?;
            if self.cancel.is_cancelled() {
                return Err(Stop::Failed(Failure::cancelled(&self.recipe.drv_path)));
            }
            ingest.write_all(&piece[..n]).map_err(|e| broken(&e))?;
        }
    }

    fn ingest(&self) -> Result<Ingest, Stop> {
        self.view.ingest(self.scan_for).map_err(|e| self.trouble(&e))
    }

    fn finish(&self, ingest: Ingest) -> Result<Ingested, Stop> {
        ingest.finish().map_err(|e| self.trouble(&e))
    }

    fn of(&self, stop: Poured) -> Stop {
        match stop {
            Poured::Http(error) => Stop::Http(error),
            Poured::Sink(error) => self.trouble(&error),
        }
    }
}

enum Poured {
    Http(HttpError),
    Sink(io::Error),
}

async fn pour(body: &mut Body, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), Poured> {
    while let Some(piece) = body.next().await.map_err(Poured::Http)? {
        to(&piece).map_err(Poured::Sink)?;
    }
    Ok(())
}

/// The NAR of a single file, while its contents arrive.
struct NarFile {
    to: Ingest,
    length: u64,
}

impl NarFile {
    fn start(mut to: Ingest, length: u64, executable: bool) -> io::Result<Self> {
        let mut words: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"regular"];
        if executable {
            words.extend([&b"executable"[..], b""]);
        }
        words.push(b"contents");
        let mut head = Vec::new();
        words.into_iter().for_each(|word| string(&mut head, word));
        head.extend(length.to_le_bytes());
        to.write_all(&head)?;
        Ok(Self { to, length })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.to.write_all(piece)
    }

    fn end(mut self) -> io::Result<Ingest> {
        let mut tail = vec![0; padding(self.length)];
        string(&mut tail, b")");
        self.to.write_all(&tail)?;
        Ok(self.to)
    }
}

/// A length, the bytes, and zeros up to a multiple of eight.
fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u64).to_le_bytes());
    to.extend(bytes);
    to.extend(std::iter::repeat_n(0, padding(bytes.len() as u64)));
}

fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}
