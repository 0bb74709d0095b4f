//! The store gets exactly the contents of a body of any size; at most a few chunks of it are in memory; and no thread
//! is held while no bytes arrive.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadBuf};

use super::*;
use crate::desk::Room;
use crate::upload_limit::UploadLimits;
use members::Member;
use shares::budget::Budgets;
use shares::threads::Threads;

fn desk() -> Desk {
    let alice: Arc<str> = Arc::from("alice");
    Desk {
        workers: Threads::new().of(&alice),
        budget: Budgets::new(1 << 30, 1 << 30).of(&alice),
        opened: Default::default(),
        pace: shares::pace::Paces::new(|| 0).of(&alice),
        room: Room::asking(|_, _| Box::pin(async { Ok(Leave::default()) })),
        uploads: UploadLimits::new(
            Arc::new(Member::named("alice")),
            tokio::sync::watch::channel(Arc::default()).1,
            u64::MAX,
        ),
    }
}

/// Keeps the bytes it gets, up to `enough`.
struct Keep {
    got: Vec<u8>,
    enough: usize,
    /// Closes its channel when the sink is dropped.
    _alive: mpsc::Sender<()>,
}

impl Keep {
    fn new(enough: usize) -> (Self, mpsc::Receiver<()>) {
        let (alive, gone) = mpsc::channel();
        (Self { got: Vec::new(), enough, _alive: alive }, gone)
    }
}

impl Sink for Keep {
    type Done = Vec<u8>;
    type Error = io::Error;
    const TAKES_ROOM: bool = true;

    fn no_room(error: ImportError) -> io::Error {
        io::Error::other(error)
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.got.extend_from_slice(bytes);
        Ok(self.got.len() < self.enough)
    }

    fn memory(&self) -> u64 {
        self.got.len() as u64
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        Ok(self.got)
    }
}

/// A reader of endless zeroes that counts the bytes read; fails after `breaks_at`.
struct Endless {
    read: Arc<AtomicUsize>,
    breaks_at: usize,
}

impl AsyncRead for Endless {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = buf.remaining().min(32 << 10);
        if self.read.fetch_add(n, Ordering::SeqCst) >= self.breaks_at {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buf.put_slice(&vec![0; n]);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn bodies_of_every_size_arrive_as_they_were_sent() {
    let desk = desk();
    for size in [0, 1, WHOLE - 1, WHOLE, WHOLE + 1, CHUNK, WHOLE + CHUNK, WHOLE + CHUNK + 1, 3 * CHUNK + 5] {
        let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let keep = Keep::new(usize::MAX).0;
        let got = feed(&desk, sent.as_slice(), || Ok(keep)).await.expect("no trouble").expect("kept");
        assert!(got == sent, "{size} bytes became {}", got.len());
    }
    assert_eq!(desk.budget.held(), 0);
}

#[tokio::test]
async fn the_store_never_takes_half_a_body_for_a_whole_one() {
    let (keep, gone) = Keep::new(usize::MAX);
    let body = Endless { read: Arc::default(), breaks_at: WHOLE + 2 * CHUNK };
    assert!(matches!(feed(&desk(), body, || Ok(keep)).await, Err(RequestError::Wire(_))));
    assert!(gone.recv().is_err(), "what was taken is dropped and not finished");
}

#[tokio::test]
async fn a_sink_that_has_enough_does_not_wait_for_the_rest() {
    let (mut sender, body) = tokio::io::duplex(1 << 20);
    sender.write_all(&vec![0; WHOLE + 10]).await.expect("sent");
    // The sender stays connected and sends nothing more.
    let (desk, keep) = (desk(), Keep::new(10).0);
    let fed = feed(&desk, body, || Ok(keep));
    let got = tokio::time::timeout(Duration::from_secs(30), fed).await.expect("no waiting");
    assert_eq!(got.expect("no trouble").expect("kept").len(), WHOLE);
}

#[tokio::test]
async fn senders_who_stop_in_the_middle_hold_no_thread() {
    let desk = desk();
    let mut stalled = Vec::new();
    for _ in 0..200 {
        let (mut sender, body) = tokio::io::duplex(1 << 20);
        sender.write_all(&vec![0; 300 << 10]).await.expect("sent");
        let (desk, keep) = (desk.clone(), Keep::new(usize::MAX).0);
        stalled.push((sender, tokio::spawn(async move { feed(&desk, body, || Ok(keep)).await.is_ok() })));
    }
    let keep = Keep::new(usize::MAX).0;
    let fed = feed(&desk, &[7; 3 * CHUNK][..], || Ok(keep));
    let got = tokio::time::timeout(Duration::from_secs(30), fed).await.expect("the same member goes on");
    assert_eq!(got.expect("no trouble").expect("kept").len(), 3 * CHUNK);
    assert!(stalled.iter().all(|(_, fed)| !fed.is_finished()));
}

#[tokio::test]
async fn uploads_that_wait_for_room_hold_no_thread() {
    let full = Room::asking(|_, _| Box::pin(std::future::pending()));
    let desk = Desk { room: full.clone(), ..desk() };
    let mut waiting = Vec::new();
    for n in 0..100 {
        // Small ones, large ones, and those that come with a commit.
        let (size, keep) = (if n % 2 == 0 { 10 } else { 3 * CHUNK }, Keep::new(usize::MAX).0);
        let desk = desk.clone();
        waiting.push(tokio::spawn(async move {
            let body = vec![1; size];
            match n % 3 {
                0 => feed_and_commit(&desk, body.as_slice(), || Ok(keep), Ok, None).await.is_ok(),
                _ => feed(&desk, body.as_slice(), || Ok(keep)).await.is_ok(),
            }
        }));
    }
    tokio::task::yield_now().await;
    // The same member's other work goes on.
    for _ in 0..20 {
        let read = tokio::time::timeout(Duration::from_secs(30), desk.workers.contents(|| 7)).await;
        assert_eq!(read.expect("a thread is free").expect("done"), 7);
    }
    assert!(waiting.iter().all(|upload| !upload.is_finished()));
    let refused = Desk {
        room: Room::asking(|_, _| {
            Box::pin(async { Err(ImportError::TooLarge { name: "x".into(), limit: 1 }) })
        }),
        ..desk
    };
    let fed = feed(&refused, &[7; 10][..], || Ok(Keep::new(usize::MAX).0)).await;
    assert!(fed.expect("no trouble").is_err(), "a refusal reaches the client");
}

#[tokio::test]
async fn a_store_that_is_slow_slows_the_sender() {
    struct Slow(mpsc::Receiver<()>);
    impl Sink for Slow {
        type Done = ();
        type Error = io::Error;
        const TAKES_ROOM: bool = false;
        fn no_room(error: ImportError) -> io::Error {
            io::Error::other(error)
        }
        fn push(&mut self, _: &[u8]) -> io::Result<bool> {
            Ok(self.0.recv().is_ok())
        }
        fn memory(&self) -> u64 {
            0
        }
        fn finish(self) -> io::Result<()> {
            Ok(())
        }
    }
    let (go, wait) = mpsc::channel::<()>();
    let read = Arc::new(AtomicUsize::new(0));
    let body = Endless { read: read.clone(), breaks_at: usize::MAX };
    let desk = desk();
    let mut feeding = std::pin::pin!(feed(&desk, body, move || Ok(Slow(wait))));
    // Polls until the reader waits: by then it has read all it can read ahead.
    for _ in 0..100 {
        assert!(poll_once(feeding.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let held = read.load(Ordering::SeqCst);
    assert!(held <= WHOLE + CHUNK, "{held} bytes were read ahead");
    drop(go);
    feeding.await.expect("no trouble").expect("ended");
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(std::task::Waker::noop()))
}
