//! A connection's socket for ssh: received data is acknowledged at once and read in large pieces.
//!
//! An ssh client that does not switch Nagle's algorithm off (OpenSSH does so for interactive sessions only) holds a
//! small packet back until the one before is acknowledged, and Linux delays an acknowledgement if it has nothing to
//! send: about 40 ms, twice per login. `TCP_NODELAY` concerns only data that *we* send. `TCP_QUICKACK` concerns data
//! that we receive, but the kernel resets it, above all when we send something; so it is set again after each write,
//! and before the next read after one that returned data.
//! Not here: what the bytes mean (`russh`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ledger::Traffic;
use rustix::net::sockopt::set_tcp_quickack;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes to read ahead. The ssh layer reads four bytes and then the packet behind them; without this buffer, that would
/// be two system calls for each 32 KiB that a client sends.
const BUFFER: usize = 128 * 1024;
/// Size of the buffer of an idle connection: there may be hundreds, and their requests are small.
const BUFFER_AT_REST: usize = 8 * 1024;
/// Small reads in a row after which a connection counts as idle.
const QUIET: u32 = 64;

/// A TCP stream as the module describes it.
pub struct Socket {
    tcp: TcpStream,
    buffer: Vec<u8>,
    /// Position in `buffer` up to which received bytes have been read.
    at: usize,
    end: usize,
    /// Number of small reads since the last one that filled the small buffer.
    quiet: u32,
    /// `TCP_QUICKACK` was set, and nothing has been received since.
    armed: bool,
    traffic: Arc<Traffic>,
}

impl Socket {
    pub fn new(tcp: TcpStream) -> Self {
        // For data that we send: an answer must not wait for the acknowledgement of the one before.
        let _ = tcp.set_nodelay(true);
        Self { tcp, buffer: Vec::new(), at: 0, end: 0, quiet: QUIET, armed: false, traffic: Arc::default() }
    }

    /// Counts the bytes of this connection.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    fn arm(&mut self) {
        self.armed = set_tcp_quickack(&self.tcp, true).is_ok();
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.at == this.end {
            if !this.armed {
                this.arm();
            }
            if buf.remaining() >= BUFFER {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
                this.traffic.came(buf.filled().len() - before);
                this.armed = false;
                return Poll::Ready(Ok(()));
            }
            let size = if this.quiet < QUIET { BUFFER } else { BUFFER_AT_REST };
            if this.buffer.len() != size {
                this.buffer = vec![0; size];
            }
            let mut room = ReadBuf::new(&mut this.buffer);
            (this.at, this.end) = (0, 0);
            ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut room))?;
            this.end = room.filled().len();
            this.traffic.came(this.end);
            this.armed = false;
            this.quiet = if this.end >= BUFFER_AT_REST { 0 } else { this.quiet.saturating_add(1) };
        }
        let n = buf.remaining().min(this.end - this.at);
        buf.put_slice(&this.buffer[this.at..this.at + n]);
        this.at += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = ready!(Pin::new(&mut this.tcp).poll_write(cx, bytes))?;
        this.traffic.went(wrote);
        // A read may already be waiting, and would set the option only after the next packet has arrived.
        this.arm();
        Poll::Ready(Ok(wrote))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use ledger::{Ledger, Principal, Resource};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_was_sent_is_read_in_order_by_small_and_large_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let mut far = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let mut socket = Socket::new(listener.accept().await.expect("accepted").0);
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
        let copy = sent.clone();
        let sending = tokio::spawn(async move {
            // Small pieces first, so that the buffer is that of an idle connection, then bulk, then small ones again.
            for piece in copy[..1000].chunks(7) {
                far.write_all(piece).await.expect("sent");
            }
            far.write_all(&copy[1000..2_999_000]).await.expect("sent");
            for piece in copy[2_999_000..].chunks(7) {
                far.write_all(piece).await.expect("sent");
            }
        });
        let mut got = Vec::new();
        for size in [4, 32 * 1024, 4, 2 * BUFFER].into_iter().cycle() {
            let mut piece = vec![0; size];
            match socket.read(&mut piece).await.expect("read") {
                0 => break,
                n => got.extend_from_slice(&piece[..n]),
            }
        }
        sending.await.expect("sent");
        socket.write_all(b"thanks").await.expect("sent");
        let (traffic, ledger) = (socket.traffic(), Ledger::in_memory());
        drop(ledger.meter(Principal::member("alice"), traffic));
        let moved = ledger.used_this_month(&Principal::member("alice"));
        let counted = (moved.get(Resource::BytesUp), moved.get(Resource::BytesDown));
        assert_eq!(counted, (sent.len() as u64, 6), "each byte is counted once");
        assert!(got == sent, "{} of {} bytes came, or in another order", got.len(), sent.len());
    }
}
