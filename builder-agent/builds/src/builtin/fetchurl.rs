//! `builtin:fetchurl`: one file from the network, whose hash the derivation knows.
//!
//! Source: Nix, src/libstore/builtins/fetchurl.cc. The URL comes from the derivation, so a stranger chose it: `net`
//! connects to public addresses only and bounds everything; the hash is checked like that of any fixed output.
//! Not here: `netrc` and hashed mirrors (the box has neither), `file:` (no file of the box may be an input).

use std::io::{self, Read, Seek, Write};
use std::sync::PoisonError;
use std::time::Duration;

use nix_derivation::StorePath;
use sandbox::{Cancel, SandboxError};
use store::{Ingest, Ingested};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use crate::attempt::AttemptContext;
use crate::failure::{Cause, Limit, sandbox_failed};
use crate::log::LogWriter;
use crate::{Failure, Recipe};
use net::{HttpError, Want};

/// Attempts while the server or the network fails (Nix: `download-attempts`), and the wait after the first.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Largest dictionary of an xz file, in KiB: that of `xz -9`, with room for the decoder.
const MAX_XZ_KIB: u32 = 80 << 10;
/// Longest delay between the cancellation of a build and the end of its download.
const GLANCE: Duration = Duration::from_millis(200);
const PIECE: usize = 128 << 10;

/// Downloads the output. `scan_for` are the paths that may not occur in it. The bytes that arrived are in `downloaded`, also
/// those of attempts that failed. Blocking, on a thread of its own.
pub(crate) fn fetch(
    recipe: &Recipe,
    context: &AttemptContext<'_>,
    scan_for: &[StorePath],
    log: &mut LogWriter,
    downloaded: &mut u64,
) -> Result<Ingested, Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    let refused = |why: &str| Failure::rejected(format!("cannot build '{drv}': {why}"));
    if !recipe.is_fixed() {
        return Err(refused("'builtin:fetchurl' must be a fixed-output derivation"));
    }
    let url = recipe.text("url").ok_or_else(|| refused("attribute 'url' missing"))?;
    let url =
        Url::parse(&url).map_err(|e| refused(&format!("its url '{}' is none: {e}", url.escape_debug())))?;
    let runtime = Handle::current();
    // One deadline for all attempts: the time limit is that of the build.
    let deadline = context.limits.of_sandbox.wall.and_then(|wall| Instant::now().checked_add(wall));
    let (over, _guard) = over(&runtime, context.cancel.clone(), deadline);
    let job = Job { recipe, context, scan_for, runtime, deadline, over };
    let mut wait = FIRST_WAIT;
    for attempt in 1.. {
        log.write(format!("downloading '{url}'\n").as_bytes());
        tracing::info!(%drv, host = url.host_str(), attempt, member = %context.view.member(), "builtin:fetchurl downloads");
        let error = match job.download(&url, downloaded) {
            Ok(ingested) => return Ok(ingested),
            Err(Stop::Failed(failure)) => return Err(failure),
            Err(Stop::Http(error)) => error,
        };
        job.go_on()?;
        if matches!(error, HttpError::TooLarge { .. }) {
            return Err(job.too_large(&format!("builder for '{drv}' failed: {error}")));
        }
        log.write(format!("error: {error}\n").as_bytes());
        if attempt >= ATTEMPTS || !error.is_passing() {
            let failed = Failure::transient(format!("builder for '{drv}' failed: {error}"));
            // The server or the network, which the box cannot tell from itself.
            return Err(failed.because(Cause::Other));
        }
        context.cancel.wait(wait);
        job.go_on()?;
        wait *= 2;
    }
    unreachable!("the last attempt returned")
}

/// Is cancelled when the build is cancelled or has used up its time. The guard ends the wait for that.
fn over(runtime: &Handle, cancel: Cancel, deadline: Option<Instant>) -> (CancellationToken, DropGuard) {
    let over = CancellationToken::new();
    let guard = over.clone().drop_guard();
    let token = over.clone();
    runtime.spawn(async move {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancelled(&cancel) => {}
            () = late => {}
            // The download ended before the deadline.
            () = token.cancelled() => {}
        }
        token.cancel();
    });
    (over, guard)
}

/// Is ready when the build is cancelled. `Cancel` is a flag for threads and wakes no task, so it is polled.
async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(GLANCE).await;
    }
}

/// The reasons for which an attempt gives no output.
enum Stop {
    /// Another attempt may work.
    Http(HttpError),
    Failed(Failure),
}

/// Counts the bytes that are read.
struct Counted<'a, R> {
    inner: R,
    bytes: &'a mut u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        *self.bytes += n as u64;
        Ok(n)
    }
}

struct Job<'a> {
    recipe: &'a Recipe,
    context: &'a AttemptContext<'a>,
    scan_for: &'a [StorePath],
    runtime: Handle,
    deadline: Option<Instant>,
    over: CancellationToken,
}

impl Job<'_> {
    /// Fails if the build is cancelled or has used up its time.
    fn go_on(&self) -> Result<(), Failure> {
        let drv = &self.recipe.drv_path;
        if self.context.cancel.is_cancelled() {
            return Err(Failure::cancelled(drv));
        }
        match (self.deadline, self.context.limits.of_sandbox.wall) {
            (Some(deadline), Some(after)) if Instant::now() >= deadline => {
                let set_by = &self.context.limits.set_by;
                Err(sandbox_failed(drv, &[], &SandboxError::Timeout { after }, set_by))
            }
            _ => Ok(()),
        }
    }

    /// `what` is a clause without an end. Another attempt, or another member, can have a higher limit.
    fn too_large(&self, what: &str) -> Failure {
        let set_by = &self.context.limits.set_by.output;
        Failure::transient(format!("{what} ({set_by}); {}", set_by.ask()))
            .because(Cause::Limit(Limit::Output))
    }

    fn trouble(&self, error: &dyn std::fmt::Display) -> Failure {
        let drv = self.recipe.drv_path.to_absolute_path();
        Failure::transient(format!("the box cannot store what it fetches for '{drv}': {error}"))
    }

    fn set(&self, attribute: &str) -> bool {
        self.recipe.text(attribute).is_some_and(|value| value == "1")
    }

    fn download(&self, url: &Url, downloaded: &mut u64) -> Result<Ingested, Stop> {
        let want = Want { max_bytes: self.context.limits.of_sandbox.output_bytes };
        let over = self.over.clone();
        let body = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = over.cancelled() => Err(HttpError::Cancelled { url: url.to_string() }),
                body = self.context.http.get(url, want) => body,
            }
        });
        let body = body.map_err(Stop::Http)?;
        let length = body.length();
        let body = body.blocking(self.runtime.clone(), over);
        let broken = body.failure();
        let mut body = Counted { inner: body, bytes: downloaded };
        let done = match length {
            _ if self.set("unpack") => self.unpacked(body, url),
            Some(length) => self.file(&mut body, length),
            None => self.file_of_unknown_length(&mut body),
        };
        done.map_err(|failure| match broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Stop::Http(error),
            None => Stop::Failed(failure),
        })
    }

    fn file(&self, from: &mut dyn Read, length: u64) -> Result<Ingested, Failure> {
        let trouble = |e: io::Error| self.trouble(&e);
        let mut nar = NarFile::start(self.ingest()?, length, self.set("executable")).map_err(trouble)?;
        pour(from, |piece| nar.write(piece)).map_err(trouble)?;
        nar.end().map_err(trouble)?.finish().map_err(|e| self.trouble(&e))
    }

    /// A NAR states the length of a file before its contents. So the whole download goes into an unnamed file first.
    fn file_of_unknown_length(&self, from: &mut dyn Read) -> Result<Ingested, Failure> {
        let trouble = |e: io::Error| self.trouble(&e);
        let mut file = tempfile::tempfile_in(self.context.scratch).map_err(trouble)?;
        pour(from, |piece| file.write_all(piece)).map_err(trouble)?;
        let length = file.stream_position().map_err(trouble)?;
        file.rewind().map_err(trouble)?;
        self.file(&mut file, length)
    }

    /// `unpack`: the file is a NAR, or the xz of one.
    fn unpacked(&self, from: impl Read, url: &Url) -> Result<Ingested, Failure> {
        let drv = self.recipe.drv_path.to_absolute_path();
        let what = format!("cannot unpack '{url}' for '{drv}'");
        let broken = |e: &dyn std::fmt::Display| Failure::output(format!("{what}: {e}"));
        let mut from: Box<dyn Read + '_> = match url.path().ends_with(".xz") {
            true => Box::new(lzma_rust2::XzReader::new_mem_limit(io::BufReader::new(from), true, MAX_XZ_KIB)),
            false => Box::new(from),
        };
        let mut ingest = self.ingest()?;
        let limit = self.context.limits.of_sandbox.output_bytes;
        let (mut left, mut ended, mut written) = (Some(limit), Ok(()), true);
        let poured = pour(&mut from, |piece| {
            left = left.and_then(|left| left.checked_sub(piece.len() as u64));
            if left.is_none() {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            // A small download can unpack to a large file, which takes time; so the build's deadline is checked here
            // too.
            ended = self.go_on();
            if ended.is_err() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            written = ingest.write_all(piece).is_ok();
            if written { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
        });
        ended?;
        if left.is_none() {
            return Err(self.too_large(&format!("{what}: it is larger than {limit} bytes")));
        }
        if written {
            poured.map_err(|e| broken(&e))?;
        }
        // If a write failed, `finish` returns its error, which says who is at fault.
        ingest.finish().map_err(|e| Failure::of_import(what.clone(), &e))
    }

    fn ingest(&self) -> Result<Ingest, Failure> {
        self.context.view.ingest(self.scan_for).map_err(|e| self.trouble(&e))
    }
}

fn pour(from: &mut dyn Read, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            n => to(&piece[..n])?,
        }
    }
}

/// Writes the NAR of a single file while its contents arrive.
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
