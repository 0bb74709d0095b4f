//! What a body carries is what the store gets, however large, and no more of it is held than a few chunks.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::*;

/// Counts what was read of endless zeroes; fails after `breaks_at`.
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
    for size in [0, 1, WHOLE - 1, WHOLE, WHOLE + 1, CHUNK, WHOLE + CHUNK, WHOLE + CHUNK + 1, 3 * CHUNK + 5] {
        let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let read = |nar: &mut dyn BufRead| {
            let mut got = Vec::new();
            nar.read_to_end(&mut got).map(|_| got)
        };
        let got = feed(sent.as_slice(), read).await.expect("no trouble").expect("read");
        assert!(got == sent, "{size} bytes became {}", got.len());
    }
}

#[tokio::test]
async fn the_store_never_takes_half_a_body_for_a_whole_one() {
    let (told, tell) = std::sync::mpsc::channel();
    let read = move |nar: &mut dyn BufRead| {
        let result = nar.read_to_end(&mut Vec::new());
        told.send(result.map_err(|error| error.kind())).expect("the test waits");
    };
    let body = Endless { read: Arc::default(), breaks_at: WHOLE + 2 * CHUNK };
    assert!(matches!(feed(body, read).await, Err(Trouble::Wire(_))));
    assert_eq!(tell.recv().expect("told"), Err(io::ErrorKind::UnexpectedEof));
}

#[tokio::test]
async fn work_that_has_enough_does_not_wait_for_the_rest() {
    let read = |nar: &mut dyn BufRead| nar.read_exact(&mut [0; 10]).is_ok();
    let body = Endless { read: Arc::default(), breaks_at: usize::MAX };
    assert!(feed(body, read).await.expect("no trouble"));
}

#[tokio::test]
async fn a_store_that_is_slow_slows_the_sender() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let read = Arc::new(AtomicUsize::new(0));
    let body = Endless { read: read.clone(), breaks_at: usize::MAX };
    let work = move |_: &mut dyn BufRead| wait.recv().is_ok();
    let mut feeding = std::pin::pin!(feed(body, work));
    // Everything that can be read without waiting is read by polling until it waits.
    for _ in 0..100 {
        assert!(poll_once(feeding.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let held = read.load(Ordering::SeqCst);
    assert!(held <= WHOLE + (CHUNKS_AHEAD + 1) * CHUNK, "{held} bytes were read ahead");
    go.send(()).expect("the work waits");
    assert!(feeding.await.expect("no trouble"));
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(std::task::Waker::noop()))
}
