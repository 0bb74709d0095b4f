//! A long line: a TCP relay on the loopback interface that delays every byte, in both directions.
//!
//! It only delays: it loses nothing, and the only limit to the bandwidth is the amount of data on its way.
//! Data that arrives together is delivered together, so that a client that waits for an answer each time pays
//! the round trip each time, and one that continues to send pays it once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Size of one read.
const PIECE: usize = 64 << 10;
/// Most pieces on their way in one direction: at 50 ms more than a line of 2.5 Gbit/s holds.
const PIECES: usize = 256;

/// Answers on a port of its own until the program ends.
pub struct Relay {
    port: u16,
}

impl Relay {
    /// A relay to this port of the loopback interface. `round_trip`: the sum of both directions.
    pub fn to(port: u16, round_trip: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let relay = Self { port: listener.local_addr().expect("an address").port() };
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for socket in [&near, &far] {
                    let _ = socket.set_nodelay(true);
                }
                let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { continue };
                delayed(near, far, round_trip / 2);
                delayed(far_too, near_too, round_trip / 2);
            }
        });
        relay
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Starts to copy from `from` to `to`, with this delay.
fn delayed(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, pieces) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES);
    thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        while let Ok(n) = from.read(&mut buffer)
            && n > 0
            && sender.send((Instant::now() + delay, buffer[..n].to_vec())).is_ok()
        {}
    });
    thread::spawn(move || {
        for (due, bytes) in pieces {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
