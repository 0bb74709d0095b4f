use proptest::prelude::*;

use super::*;
use crate::protocol::{Bytes, Decoder, HEADER, MAX_TEXT, header, json_frame, parse_header};

fn frame(tag: Tag, body: &[u8]) -> Frame {
    Frame { tag, body: body.to_vec() }
}

fn json(tag: Tag, value: &impl serde::Serialize) -> Frame {
    frame(tag, &json_frame(tag, value).unwrap()[HEADER..])
}

fn hello_frame() -> Frame {
    json(
        Tag::Hello,
        &Hello { version: VERSION, kernel: "6.12".into(), init_ns: 1, ready_ns: 2, draw: Default::default() },
    )
}

fn exit_frame(code: i32) -> Frame {
    let exit = Exit {
        status: ExitStatus::Exited(code),
        out_of_memory: false,
        process_limit: false,
        peak_memory: None,
    };
    json(Tag::Exit, &exit)
}

/// A conversation about outputs `out` and `dev` after these frames.
fn after(frames: &[Frame]) -> Order {
    let mut order = Order::new(["out".to_owned(), "dev".to_owned()]);
    for frame in frames {
        order.accept(frame.clone()).unwrap();
    }
    order
}

fn exited() -> Vec<Frame> {
    vec![hello_frame(), frame(Tag::Started, b""), frame(Tag::Log, b"x"), exit_frame(0)]
}

fn with(mut frames: Vec<Frame>, more: &[Frame]) -> Vec<Frame> {
    frames.extend_from_slice(more);
    frames
}

fn output(name: &str) -> [Frame; 3] {
    [frame(Tag::OutputBegin, name.as_bytes()), frame(Tag::OutputData, b"nar"), frame(Tag::OutputEnd, b"")]
}

#[test]
fn a_whole_conversation_is_accepted() {
    let mut order = after(&with(with(exited(), &output("out")), &output("dev")));
    assert_eq!(order.accept(frame(Tag::Done, b"")), Ok(Event::Done));
    // Nothing may follow.
    assert!(order.accept(frame(Tag::Done, b"")).is_err());
}

#[test]
fn every_frame_is_refused_wherever_it_does_not_belong() {
    let states: [(&str, Vec<Frame>, &[Tag]); 6] = [
        ("connected", vec![], &[Tag::Hello]),
        ("greeted", vec![hello_frame()], &[Tag::Started, Tag::Log, Tag::Failed]),
        ("running", vec![hello_frame(), frame(Tag::Started, b"")], &[Tag::Log, Tag::Exit, Tag::Failed]),
        // Done is refused here for another reason: two outputs are missing.
        ("outputs", exited(), &[Tag::OutputBegin, Tag::Failed]),
        ("in output", with(exited(), &output("out")[..1]), &[Tag::OutputData, Tag::OutputEnd, Tag::Failed]),
        ("failed", vec![hello_frame(), frame(Tag::Started, b""), exit_frame(1)], &[Tag::Done, Tag::Failed]),
    ];
    let failure = Failure { kind: FailureKind::Sandbox, text: String::new() };
    let candidates = [
        frame(Tag::Job, b"{}"),
        frame(Tag::FileData, b"x"),
        frame(Tag::Home, b"{}"),
        frame(Tag::Attach, b"{}"),
        frame(Tag::Open, b"{}"),
        frame(Tag::Attached, b"{}"),
        frame(Tag::Opened, b"{}"),
        hello_frame(),
        frame(Tag::Started, b""),
        frame(Tag::Log, b"x"),
        exit_frame(0),
        frame(Tag::OutputBegin, b"out"),
        frame(Tag::OutputData, b"x"),
        frame(Tag::OutputEnd, b""),
        frame(Tag::Done, b""),
        json(Tag::Failed, &failure),
    ];
    for (name, frames, allowed) in states {
        for candidate in &candidates {
            let mut order = after(&frames);
            let result = order.accept(candidate.clone());
            assert_eq!(result.is_ok(), allowed.contains(&candidate.tag), "{name}: {candidate:?}: {result:?}");
            if result.is_err() {
                // After an error every frame is refused, even one that would have been valid before.
                for next in &candidates {
                    assert!(order.accept(next.clone()).is_err(), "{name}: {next:?} after an error");
                }
            }
        }
    }
}

#[test]
fn an_output_nobody_asked_for_is_refused() {
    let mut order = after(&exited());
    let error = order.accept(frame(Tag::OutputBegin, b"../../etc")).unwrap_err();
    assert_eq!(error, OrderError::UnknownOutput { name: "../../etc".into() });
}

#[test]
fn an_output_name_that_is_no_text_is_refused() {
    let error = after(&exited()).accept(frame(Tag::OutputBegin, &[0xff; 16])).unwrap_err();
    assert!(matches!(error, OrderError::UnknownOutput { .. }));
}

#[test]
fn an_output_sent_twice_is_refused() {
    let mut order = after(&with(exited(), &output("out")));
    let error = order.accept(frame(Tag::OutputBegin, b"out")).unwrap_err();
    assert_eq!(error, OrderError::DuplicateOutput { name: "out".into() });
}

#[test]
fn done_with_an_output_missing_is_refused() {
    let mut order = after(&with(exited(), &output("out")));
    let error = order.accept(frame(Tag::Done, b"")).unwrap_err();
    assert_eq!(error, OrderError::OutputsMissing { name: "dev".into() });
}

#[test]
fn a_guest_of_another_version_is_told_apart() {
    let hello = Hello {
        version: VERSION + 1,
        kernel: String::new(),
        init_ns: 0,
        ready_ns: 0,
        draw: Default::default(),
    };
    let error = after(&[]).accept(json(Tag::Hello, &hello)).unwrap_err();
    assert_eq!(error, OrderError::Version { got: VERSION + 1 });
}

#[test]
fn a_kernel_name_cannot_carry_escapes_or_a_novel() {
    let kernel = format!("6.12\x1b[2J\n{}", "x".repeat(1000));
    let hello = Hello { version: VERSION, kernel, init_ns: 0, ready_ns: 0, draw: Default::default() };
    let Event::Hello(hello) = after(&[]).accept(json(Tag::Hello, &hello)).unwrap() else { panic!() };
    assert!(hello.kernel.len() <= MAX_KERNEL && hello.kernel.starts_with("6.12[2Jx"), "{}", hello.kernel);
}

#[test]
fn a_failure_cannot_blame_an_output_nobody_asked_for() {
    let failure = Failure { kind: FailureKind::OutputMissing { name: "bin".into() }, text: String::new() };
    let error = after(&exited()).accept(json(Tag::Failed, &failure)).unwrap_err();
    assert_eq!(error, OrderError::UnknownOutput { name: "bin".into() });
}

#[test]
fn the_text_of_a_failure_is_bounded_and_on_one_line() {
    let failure = Failure { kind: FailureKind::Sandbox, text: "\x1b[31mé\n".repeat(1000) };
    let Event::Failed(failure) = after(&exited()).accept(json(Tag::Failed, &failure)).unwrap() else {
        panic!()
    };
    assert!(failure.text.len() <= MAX_TEXT + 6 && !failure.text.contains(char::is_control));
}

#[test]
fn an_oversized_frame_is_refused_by_its_header() {
    for tag in (0..=u8::MAX).filter_map(Tag::from_byte) {
        let length = u32::try_from(tag.limit()).unwrap() + 1;
        let bytes = [vec![tag as u8], length.to_le_bytes().to_vec()].concat();
        // Only five bytes arrived: no memory can have been allocated for the announced length.
        let mut input = bytes.as_slice();
        assert_eq!(Decoder::new().next(&mut input), Err(FrameError::TooLong { tag, length }));
        assert_eq!(parse_header(header(tag, tag.limit())), Ok((tag, tag.limit())));
    }
}

#[test]
fn an_unknown_tag_is_refused() {
    let mut input: &[u8] = &[77, 0, 0, 0, 0];
    assert_eq!(Decoder::new().next(&mut input), Err(FrameError::UnknownTag(77)));
}

#[test]
fn a_body_that_is_not_its_json_is_refused_with_a_bounded_reason() {
    for body in [&b""[..], b"{", b"[1]", b"\xff\xff", &[b'['; 10_000]] {
        let error = after(&[]).accept(frame(Tag::Hello, body)).unwrap_err();
        assert!(matches!(error, OrderError::Frame(FrameError::BadBody { .. })), "{error:?}");
        assert!(error.to_string().len() < MAX_TEXT);
    }
}

proptest! {
    #[test]
    fn frames_come_back_however_the_stream_is_cut(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..8),
        cut in 1usize..50,
    ) {
        let mut stream = Vec::new();
        for body in &bodies {
            stream.extend_from_slice(&header(Tag::Log, body.len()));
            stream.extend_from_slice(body);
        }
        let (mut decoder, mut got) = (Decoder::new(), Vec::new());
        for piece in stream.chunks(cut) {
            let mut input = piece;
            while let Some(frame) = decoder.next(&mut input).unwrap() {
                got.push(frame.body);
            }
        }
        prop_assert_eq!(got, bodies);
        prop_assert!(decoder.is_between_frames());
    }

    #[test]
    fn a_decoder_goes_on_where_another_one_was_wherever_that_was(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..4),
        at in 0usize..130,
    ) {
        let stream: Vec<u8> =
            bodies.iter().flat_map(|body| [&header(Tag::Log, body.len())[..], body].concat()).collect();
        let (before, after) = stream.split_at(at.min(stream.len()));
        let mut got = Vec::new();
        let mut read = |decoder: &mut Decoder, mut input: &[u8]| {
            while let Some(frame) = decoder.next(&mut input).unwrap() {
                got.push(frame.body);
            }
        };
        let (mut one, mut other) = (Decoder::new(), Decoder::new());
        read(&mut one, before);
        read(&mut other, &one.begun());
        read(&mut other, after);
        prop_assert_eq!(got, bodies);
        prop_assert_eq!(other.begun(), Vec::<u8>::new());
    }

    #[test]
    fn random_bytes_never_get_past_the_greeting(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (mut decoder, mut order) = (Decoder::new(), Order::new(["out".to_owned()]));
        let mut input = bytes.as_slice();
        while let Ok(Some(frame)) = decoder.next(&mut input) {
            prop_assert!(order.accept(frame).is_err());
        }
    }
}

proptest! {
    #[test]
    fn strings_of_any_bytes_cross_as_they_are(strings: Vec<Vec<u8>>) {
        let strings: Vec<Bytes> = strings.into_iter().map(Bytes).collect();
        let text = serde_json::to_vec(&strings).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Vec<Bytes>>(&text).unwrap(), strings);
    }
}
