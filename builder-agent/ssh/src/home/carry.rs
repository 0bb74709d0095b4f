//! Carries what is sent on a channel of the client to one in the home, and back.
//!
//! From the client: everything is taken at once and waits here, see [`Waiting`]. To the client: one piece at a time, so the
//! home waits for a client that does not read.

use bytes::Bytes;
use russh::client::Msg as HomeMsg;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use shares::budget::{Charge, OverBudget};
use tokio::sync::mpsc;

use super::lodging::{Inlet, Waiting};

/// Something that the client sends to a program, in order.
pub(super) enum Sent {
    Data(Counted),
    End,
    /// Columns, rows, and the same in pixels.
    Window([u32; 4]),
    Signal(Sig),
}

/// Memory of a piece besides its bytes.
const PIECE: usize = 256;

/// Bytes that are counted, and charged, as long as they wait.
pub(super) struct Counted {
    bytes: Bytes,
    waiting: Waiting,
    _charge: Charge,
}

impl Counted {
    fn new(bytes: Bytes, inlet: &Inlet) -> Result<Self, OverBudget> {
        let need = (bytes.len() + PIECE) as u64;
        let charge = inlet.budget.charge(need, "what you sent to your home and no program has read")?;
        inlet.waiting.more(bytes.len());
        Ok(Self { bytes, waiting: inlet.waiting.clone(), _charge: charge })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.waiting.fewer(self.bytes.len());
    }
}

/// Takes whatever the client sends, until it closes the channel. Fails if too much of it waits.
pub(super) async fn take(
    mut client: ChannelReadHalf,
    to: mpsc::UnboundedSender<Sent>,
    inlet: &Inlet,
) -> Result<(), OverBudget> {
    while let Some(message) = client.wait().await {
        let sent = match message {
            ChannelMsg::Data { data } => Sent::Data(Counted::new(data, inlet)?),
            ChannelMsg::Eof => Sent::End,
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                Sent::Window([col_width, row_height, pix_width, pix_height])
            }
            ChannelMsg::Signal { signal } => Sent::Signal(signal),
            ChannelMsg::Close => return Ok(()),
            _ => continue,
        };
        if to.send(sent).is_err() {
            return Ok(());
        }
    }
    Ok(())
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
pub(super) async fn both(client: Channel<Msg>, home: Channel<HomeMsg>, inlet: &Inlet) {
    let (client_reads, client_writes) = client.split();
    let (mut home_reads, home_writes) = home.split();
    let (to, from) = mpsc::unbounded_channel();
    let inwards = async {
        let (_, ()) = tokio::try_join!(take(client_reads, to, inlet), async {
            give(from, &home_writes).await;
            Ok(())
        })?;
        Ok::<(), OverBudget>(())
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
        over = inwards => if let Err(over) = over {
            tracing::info!(%over, "a forwarded connection was ended");
        },
        () = outwards => {}
    }
    // Either may be gone; then there is nothing left to close.
    let _ = home_writes.close().await;
    let _ = client_writes.close().await;
}

#[cfg(test)]
mod tests {
    use shares::budget::Budgets;

    use super::*;

    #[test]
    fn what_waits_is_charged_to_the_member_with_every_small_piece_and_given_back_when_it_is_read() {
        let inlet = Inlet {
            waiting: Waiting::default(),
            budget: Budgets::new(64 << 20, 20 << 20).of(&"alice".into()),
        };
        let piece = |bytes: usize| Counted::new(Bytes::from(vec![0; bytes]), &inlet);
        let large: Vec<Counted> = (0..19).map(|_| piece(1 << 20).expect("room")).collect();
        assert!(inlet.waiting.is_much());
        // Two MiB more, in the smallest pieces that a client can send, of which each takes some memory of its own.
        let small: Vec<Counted> = (0..1 << 20).map_while(|_| piece(1).ok()).collect();
        assert!(small.len() < 8192, "{} pieces", small.len());
        let over = piece(1 << 20).err().expect("no room").to_string();
        assert!(over.contains("what you sent to your home"), "{over}");
        drop((large, small));
        assert!(!inlet.waiting.is_much() && piece(1 << 20).is_ok());
    }
}
