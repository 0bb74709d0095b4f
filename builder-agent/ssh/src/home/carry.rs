//! Carries what is sent on a channel of the client to one in the home, and back.
//!
//! From the client: everything is taken at once and waits here, see [`Waiting`]. To the client: one piece at a time, so the
//! home waits for a client that does not read.

use bytes::Bytes;
use russh::client::Msg as HomeMsg;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::mpsc;

use super::lodging::Waiting;

/// Something that the client sends to a program, in order.
pub(super) enum Sent {
    Data(Counted),
    End,
    /// Columns, rows, and the same in pixels.
    Window([u32; 4]),
    Signal(Sig),
}

/// Bytes that are counted as long as they wait.
pub(super) struct Counted {
    bytes: Bytes,
    waiting: Waiting,
}

impl Counted {
    fn new(bytes: Bytes, waiting: &Waiting) -> Self {
        waiting.more(bytes.len());
        Self { bytes, waiting: waiting.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.waiting.fewer(self.bytes.len());
    }
}

/// Takes whatever the client sends, until it closes the channel.
pub(super) async fn take(mut client: ChannelReadHalf, to: mpsc::UnboundedSender<Sent>, waiting: &Waiting) {
    while let Some(message) = client.wait().await {
        let sent = match message {
            ChannelMsg::Data { data } => Sent::Data(Counted::new(data, waiting)),
            ChannelMsg::Eof => Sent::End,
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                Sent::Window([col_width, row_height, pix_width, pix_height])
            }
            ChannelMsg::Signal { signal } => Sent::Signal(signal),
            ChannelMsg::Close => return,
            _ => continue,
        };
        if to.send(sent).is_err() {
            return;
        }
    }
}

/// Gives it to the home. Ends when the home takes no more; what was sent before the end of `from` is given all.
pub(super) async fn give(mut from: mpsc::UnboundedReceiver<Sent>, home: &ChannelWriteHalf<HomeMsg>) {
    while let Some(sent) = from.recv().await {
        let given = match sent {
            Sent::Data(counted) => home.data_bytes(counted.bytes.clone()).await,
            Sent::End => home.eof().await,
            Sent::Window([columns, rows, width, height]) => {
                home.window_change(columns, rows, width, height).await
            }
            Sent::Signal(signal) => home.signal(signal).await,
        };
        if given.is_err() {
            return;
        }
    }
}

/// Carries a plain stream in both directions until one side has closed it.
pub(super) async fn both(client: Channel<Msg>, home: Channel<HomeMsg>, waiting: &Waiting) {
    let (client_reads, client_writes) = client.split();
    let (mut home_reads, home_writes) = home.split();
    let (to, from) = mpsc::unbounded_channel();
    let inwards = async {
        tokio::join!(take(client_reads, to, waiting), give(from, &home_writes));
    };
    let outwards = async {
        while let Some(message) = home_reads.wait().await {
            let carried = match message {
                ChannelMsg::Data { data } => client_writes.data_bytes(data).await,
                ChannelMsg::Eof => client_writes.eof().await,
                ChannelMsg::Close => return,
                _ => Ok(()),
            };
            if carried.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inwards => {}
        () = outwards => {}
    }
    // Either may be gone; then there is nothing left to close.
    let _ = home_writes.close().await;
    let _ = client_writes.close().await;
}
