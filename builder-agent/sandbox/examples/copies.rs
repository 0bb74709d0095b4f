//! Starts copies of a template, one after the other, and looks whether any two of their guests draw the same random numbers.
//!
//! ```text
//! copies --guest DIR [--count N] [--memory MIB]
//! ```
//! DIR is made by `netboot-image guest`. Each copy draws 16 bytes from its kernel's generator when it says hello, before it has a
//! task, and is ended then. Without a seed of its own, every copy would draw what the first one draws. Ends with an error if two are
//! equal, or if a copy does not start.

use std::collections::HashMap;
use std::io::Read;
use std::time::{Duration, Instant};

use guest::protocol::{Bytes, DRAW, Decoder, Hello, Tag};
use sandbox::kvm::{KvmBackend, KvmConfig, jail};
use sandbox::{Backend, Cancel, Image, Inputs, Machine, child_main_if_requested};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    child_main_if_requested();
    let (mut guest, mut count, mut memory_mib) = (None, 10_000usize, 256u32);
    let mut args = std::env::args().skip(1);
    while let Some(argument) = args.next() {
        let mut value = || args.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--guest" => guest = Some(value()?),
            "--count" => count = value()?.parse()?,
            "--memory" => memory_mib = value()?.parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let guest = guest.ok_or("--guest DIR is needed")?;
    let mut config = KvmConfig::new(format!("{guest}/vmlinux"), format!("{guest}/initrd"));
    // The example runs on developers' machines, which may lack steps of the jail.
    config.allow_missing = jail::Step::ALL.to_vec();
    config.templates = 1;
    let backend = KvmBackend::new(config);
    let inputs = Inputs::Image(Image::default());
    let machine = Machine { id: "copy", vcpus: 1, memory_mib, inputs: &inputs, network: false, home: false };
    backend.make_template(machine)?;
    let began = Instant::now();
    let mut drawn: HashMap<Vec<u8>, usize> = HashMap::new();
    for copy in 1..=count {
        let draw = hello(&backend, machine)?.draw;
        check(&draw)?;
        if let Some(other) = drawn.insert(draw.0, copy) {
            return Err(format!("copies {other} and {copy} drew the same random numbers").into());
        }
        if copy % 500 == 0 {
            println!("{copy} copies after {:.0} s, all different", began.elapsed().as_secs_f64());
        }
    }
    println!("{count} copies drew {count} different numbers, in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn check(draw: &Bytes) -> Result<(), Failure> {
    if draw.0.len() == DRAW { Ok(()) } else { Err(format!("a draw of {} bytes", draw.0.len()).into()) }
}

/// Starts a copy, and ends it after its hello.
fn hello(backend: &KvmBackend, machine: Machine<'_>) -> Result<Hello, Failure> {
    let mut started = backend.start(machine, &Cancel::new())?;
    let stream = &mut started.streams.guest;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (mut decoder, mut buffer) = (Decoder::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(format!("a copy hung up: {}", started.far_end.last_words()).into());
        }
        if let Some(frame) = decoder.next(&mut &buffer[..n])? {
            return match frame.tag {
                Tag::Hello => Ok(frame.parse()?),
                other => Err(format!("a copy said {other:?}").into()),
            };
        }
    }
}
