//! Bytes from a guest through the decoder and the order of frames. Whatever comes, both return, the decoder loses
//! no byte, and no output is accepted that was not asked for.
#![no_main]

use guest::order::{Event, Order};
use guest::protocol::{Decoder, Frame, HEADER, Tag, json_frame};
use libfuzzer_sys::fuzz_target;

/// The first frames of a good guest, so that the fuzzer need not invent their JSON.
fn prelude(order: &mut Order, steps: u8) {
    let hello = guest::protocol::Hello {
        version: guest::protocol::VERSION,
        kernel: "6.12".into(),
        init_ns: 0,
        ready_ns: 0,
    };
    let exit = guest::protocol::Exit {
        status: guest::protocol::ExitStatus::Exited(0),
        out_of_memory: false,
        process_limit: false,
        peak_memory: None,
    };
    let json = |tag, bytes: Vec<u8>| Frame { tag, body: bytes[HEADER..].to_vec() };
    let frames = [
        json(Tag::Hello, json_frame(Tag::Hello, &hello).expect("small")),
        Frame { tag: Tag::Started, body: vec![] },
        json(Tag::Exit, json_frame(Tag::Exit, &exit).expect("small")),
    ];
    for frame in frames.into_iter().take(usize::from(steps % 4)) {
        order.accept(frame).expect("a good guest");
    }
}

fuzz_target!(|data: &[u8]| {
    let [steps, cut, data @ ..] = data else { return };
    let mut order = Order::new(["out".to_owned(), "dev".to_owned()]);
    prelude(&mut order, *steps);
    let mut decoder = Decoder::new();
    for piece in data.chunks(usize::from(*cut) + 1) {
        let mut input = piece;
        loop {
            match decoder.next(&mut input) {
                Ok(Some(frame)) => match order.accept(frame) {
                    Ok(Event::OutputBegin(name)) => assert!(name == "out" || name == "dev"),
                    Ok(_) => {}
                    Err(_) => return,
                },
                Ok(None) => {
                    assert!(input.is_empty());
                    break;
                }
                Err(_) => return,
            }
        }
    }
});
