use super::*;
use crate::protocol::{FailureKind, HEADER, MAX_TEXT, VERSION, json_frame};

fn frame(tag: Tag) -> Frame {
    Frame { tag, body: Vec::new() }
}

fn json(tag: Tag, value: &impl serde::Serialize) -> Frame {
    Frame { tag, body: json_frame(tag, value).unwrap()[HEADER..].to_vec() }
}

fn hello_frame() -> Frame {
    json(
        Tag::Hello,
        &Hello { version: VERSION, kernel: "6.12".into(), init_ns: 1, ready_ns: 2, draw: Default::default() },
    )
}

fn answer(tag: Tag, number: u64, error: Option<&str>) -> Frame {
    json(tag, &Answer { number, error: error.map(str::to_owned) })
}

fn failed_frame(kind: FailureKind) -> Frame {
    json(Tag::Failed, &Failure { kind, text: "\x1b[31mé\n".repeat(1000) })
}

/// A conversation after these frames.
fn after(frames: &[Frame]) -> Order {
    let mut order = Order::new();
    for frame in frames {
        order.accept(frame).unwrap();
    }
    order
}

fn running() -> Order {
    after(&[hello_frame(), frame(Tag::Started)])
}

#[test]
fn every_frame_is_refused_wherever_it_does_not_belong() {
    let failed = || failed_frame(FailureKind::Sandbox);
    let states: [(&str, Vec<Frame>, &[Tag]); 4] = [
        ("connected", vec![], &[Tag::Hello]),
        ("greeted", vec![hello_frame()], &[Tag::Started, Tag::Failed]),
        ("running", vec![hello_frame(), frame(Tag::Started)], &[Tag::Attached, Tag::Failed]),
        ("over", vec![hello_frame(), failed()], &[]),
    ];
    for (name, frames, allowed) in states {
        for tag in (0..=u8::MAX).filter_map(Tag::from_byte) {
            let candidate = match tag {
                Tag::Hello => hello_frame(),
                Tag::Attached | Tag::Opened => answer(tag, 7, None),
                Tag::Failed => failed(),
                other => frame(other),
            };
            let mut order = after(&frames);
            order.expect(Tag::Attached, 7);
            let result = order.accept(&candidate);
            assert_eq!(result.is_ok(), allowed.contains(&tag), "{name}: {tag:?}: {result:?}");
            if result.is_err() {
                let next = order.accept(&failed());
                assert!(next.is_err(), "{name}: after a wrong {tag:?}: {next:?}");
            }
        }
    }
}

#[test]
fn requests_are_answered_once_in_their_order_and_by_their_kind() {
    let asked = || {
        let mut order = running();
        order.expect(Tag::Attached, 3);
        order.expect(Tag::Opened, 4);
        order
    };
    let mut order = asked();
    assert_eq!(order.accept(&answer(Tag::Attached, 3, None)), Ok(Event::Answered(Ok(()))));
    let refused = order.accept(&answer(Tag::Opened, 4, Some("no sshd")));
    assert_eq!(refused, Ok(Event::Answered(Err("no sshd".into()))));
    let again = order.accept(&answer(Tag::Opened, 4, None)).unwrap_err();
    assert_eq!(again, OrderError::NotAsked { got: Tag::Opened, number: 4 });

    for (got, number) in [(Tag::Opened, 4), (Tag::Opened, 3), (Tag::Attached, 4)] {
        let error = asked().accept(&answer(got, number, None)).unwrap_err();
        assert_eq!(error, OrderError::NotAsked { got, number });
    }
    let error = running().accept(&answer(Tag::Attached, 0, None)).unwrap_err();
    assert_eq!(error, OrderError::NotAsked { got: Tag::Attached, number: 0 });
}

#[test]
fn texts_are_bounded_and_on_one_line() {
    let mut order = running();
    order.expect(Tag::Attached, 1);
    let text = "\x1b[31mé\n".repeat(1000);
    let answered = order.accept(&answer(Tag::Attached, 1, Some(&text))).unwrap();
    let Event::Answered(Err(why)) = answered else { panic!() };
    let Event::Failed(failure) = order.accept(&failed_frame(FailureKind::CannotStart)).unwrap() else {
        panic!()
    };
    for text in [why, failure.text] {
        assert!(text.len() <= MAX_TEXT + 6 && !text.contains(char::is_control), "{text}");
    }
}

#[test]
fn a_home_has_no_outputs_that_could_be_blamed() {
    let error = running().accept(&failed_frame(FailureKind::OutputMissing { name: "out".into() }));
    assert_eq!(error, Err(OrderError::UnknownOutput { name: "out".into() }));
}
