//! Bytes from a guest through the decoder and the order of frames, those of a build or of a home. Whatever comes, both return,
//! the decoder loses no byte, and no output and no answer is accepted that was not asked for.
#![no_main]

use guest::order::{Event, Order, OrderError, home};
use guest::protocol::{Decoder, Frame, HEADER, Tag, json_frame};
use libfuzzer_sys::fuzz_target;

/// The first frames of a good guest, so that the fuzzer need not invent their JSON.
fn prelude() -> [Frame; 3] {
    let hello = guest::protocol::Hello {
        version: guest::protocol::VERSION,
        kernel: "6.12".into(),
        init_ns: 0,
        ready_ns: 0,
        draw: Default::default(),
    };
    let exit = guest::protocol::Exit {
        status: guest::protocol::ExitStatus::Exited(0),
        out_of_memory: false,
        process_limit: false,
        peak_memory: None,
    };
    let json = |tag, bytes: Vec<u8>| Frame { tag, body: bytes[HEADER..].to_vec() };
    [
        json(Tag::Hello, json_frame(Tag::Hello, &hello).expect("small")),
        Frame { tag: Tag::Started, body: vec![] },
        json(Tag::Exit, json_frame(Tag::Exit, &exit).expect("small")),
    ]
}

/// The answers that a home has to give.
const ANSWERS: [(Tag, u64); 3] = [(Tag::Opened, 0), (Tag::Attached, 1), (Tag::Attached, 300)];

/// Passes the frames in `data` on, until the first error.
fn feed(data: &[u8], piece: usize, mut accept: impl FnMut(Frame) -> Result<(), OrderError>) {
    let mut decoder = Decoder::new();
    for piece in data.chunks(piece) {
        let mut input = piece;
        loop {
            match decoder.next(&mut input) {
                Ok(Some(frame)) => match accept(frame) {
                    Ok(()) => {}
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
}

fuzz_target!(|data: &[u8]| {
    let [steps, cut, data @ ..] = data else { return };
    let (steps, piece) = (usize::from(*steps), usize::from(*cut) + 1);
    let begun = prelude().into_iter().take(steps % 4);
    if steps & 4 == 0 {
        let mut order = Order::new(["out".to_owned(), "dev".to_owned()]);
        begun.for_each(|frame| drop(order.accept(frame).expect("a good guest")));
        feed(data, piece, |frame| match order.accept(frame)? {
            Event::OutputBegin(name) => {
                assert!(name == "out" || name == "dev");
                Ok(())
            }
            _ => Ok(()),
        });
    } else {
        let (mut order, mut answers) = (home::Order::new(), 0);
        begun.take(2).for_each(|frame| drop(order.accept(&frame).expect("a good guest")));
        ANSWERS.into_iter().for_each(|(tag, number)| order.expect(tag, number));
        feed(data, piece, |frame| {
            let event = order.accept(&frame)?;
            answers += usize::from(matches!(event, home::Event::Answered(_)));
            Ok(())
        });
        assert!(answers <= ANSWERS.len());
    }
});
