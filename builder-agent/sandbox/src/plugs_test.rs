//! The agent's end of what is plugged into a home, against VMMs that follow the rules, and against hostile ones.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::*;
use crate::backend::Segment;

const MIB: u64 = 1 << 20;

fn segment(offset: u64, len: u64) -> Segment {
    Segment { file: Arc::new(File::open("/dev/null").unwrap()), offset, len }
}

fn image(count: usize, len: u64) -> Image {
    Image { segments: vec![segment(0, len); count] }
}

/// Plugs whose other end is played by `vmm`.
fn plugs<T: Send + 'static>(vmm: impl FnOnce(UnixStream) -> T + Send + 'static) -> (Plugs, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Plugs::new(ours, 0, None).unwrap(), std::thread::spawn(move || vmm(theirs)))
}

/// Receives an image, and counts its segments and its files, which it closes.
fn receive(vmm: &UnixStream) -> io::Result<(usize, usize)> {
    let Addition::Image { segments } = handover::receive_json(vmm)? else { panic!("no image") };
    let mut files = 0;
    while files < segments.len() {
        files += handover::receive_batch(vmm)?.len();
    }
    Ok((segments.len(), files))
}

fn text<T: std::fmt::Debug>(result: Result<T, SandboxError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn images_lie_one_behind_the_other() {
    let (mut plugs, vmm) = plugs(|vmm| {
        let mut counts = Vec::new();
        while let Ok(count) = receive(&vmm) {
            counts.push(count);
            handover::send_json(&vmm, &Answer::Done).unwrap();
        }
        counts
    });
    assert_eq!(plugs.add_image(&image(1, 4096)).unwrap(), START);
    assert_eq!(plugs.add_image(&image(300, 8192)).unwrap(), START + 4096);
    assert_eq!(plugs.add_image(&image(2, MIB)).unwrap(), START + 4096 + 300 * 8192);
    drop(plugs);
    assert_eq!(vmm.join().unwrap(), [(1, 1), (300, 300), (2, 2)]);
}

#[test]
fn an_image_that_the_vmm_refuses_takes_no_place() {
    let (mut plugs, vmm) = plugs(|vmm| {
        for answer in [Answer::Refused { why: "not\x1b[2J now".into() }, Answer::Done] {
            receive(&vmm).unwrap();
            handover::send_json(&vmm, &answer).unwrap();
        }
    });
    let why = text(plugs.add_image(&image(3, 4096)));
    assert!(why.ends_with("the VMM says: not\u{fffd}[2J now"), "{why}");
    assert_eq!(plugs.add_image(&image(3, 4096)).unwrap(), START);
    assert_eq!((plugs.len, plugs.segments), (START + 3 * 4096, 3));
    vmm.join().unwrap();
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_sent() {
    let (mut plugs, vmm) = plugs(|mut vmm| vmm.read_to_end(&mut Vec::new()).unwrap());
    plugs.len = CAPACITY - MIB;
    plugs.segments = SEGMENTS_MAX - 2;
    let cases = [
        (image(3, 4096), "59998 already, and 60000 is the most"),
        (image(1, MIB + 4096), "it has 1052672 bytes"),
        (image(1, u64::MAX - 4095), "of the disk's 1099511627776 bytes 1099510579200 are in use"),
        (image(2, u64::MAX / 4096 * 4096), "are in use"),
        (image(0, 4096), "it is empty"),
        (image(1, 0), "(offset 0, length 0) is no run of whole pages"),
        (image(1, 4097), "length 4097"),
        (Image { segments: vec![segment(0, 4096), segment(512, 4096)] }, "offset 512"),
    ];
    for (image, expected) in cases {
        let why = text(plugs.add_image(&image));
        assert!(why.contains(expected), "{why}");
    }
    drop(plugs);
    assert_eq!(vmm.join().unwrap(), 0);
}

#[test]
fn a_disk_of_all_its_bytes_and_parts_is_full_and_not_more() {
    let (mut plugs, vmm) = plugs(|vmm| {
        receive(&vmm).unwrap();
        handover::send_json(&vmm, &Answer::Done).unwrap();
    });
    plugs.len = CAPACITY - 2 * 4096;
    plugs.segments = SEGMENTS_MAX - 2;
    assert_eq!(plugs.add_image(&image(2, 4096)).unwrap(), CAPACITY - 2 * 4096);
    assert!(plugs.add_image(&image(1, 4096)).is_err());
    vmm.join().unwrap();
}

/// Whatever the VMM does in place of an answer, the agent goes on in time, and adds nothing more.
#[test]
fn a_vmm_that_does_not_answer_as_it_should_is_left_in_time() {
    fn hostile(vmm: &UnixStream, how: usize) {
        let mut vmm = vmm;
        let ten = || (0..10).for_each(|_| std::thread::sleep(Duration::from_millis(100)));
        match how {
            // It reads nothing; it reads everything and says nothing.
            0 => ten(),
            1 => {
                receive(vmm).unwrap();
                ten();
            }
            // It is gone.
            2 => {}
            // A length and no text; one that is too large; no JSON; half an answer at a time.
            3 => {
                vmm.write_all(&100u32.to_le_bytes()).unwrap();
                ten();
            }
            4 => vmm.write_all(&u32::MAX.to_le_bytes()).unwrap(),
            5 => vmm.write_all(b"\x02\0\0\0{]").unwrap(),
            6 => {
                vmm.write_all(&4000u32.to_le_bytes()).unwrap();
                while vmm.write_all(b" ").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            // It takes some bytes now and then, so that every write makes progress.
            _ => {
                while vmm.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
    for how in 0..8 {
        let (mut plugs, vmm) = plugs(move |vmm| hostile(&vmm, how));
        plugs.patience = Duration::from_millis(300);
        let began = Instant::now();
        // For those who do not read, more than the socket holds; for the others little, so that they come to their answer.
        let count = if matches!(how, 0 | 1 | 7) { 30_000 } else { 1 };
        let why = text(plugs.add_image(&Image { segments: vec![segment(1 << 50, 1 << 20); count] }));
        assert!(began.elapsed() < Duration::from_secs(5), "{how}: {:?}", began.elapsed());
        assert!(why.contains("the VMM"), "{how}: {why}");
        for why in [text(plugs.add_image(&image(1, 4096))), text(plugs.open_port(1025))] {
            assert!(why.contains("open a new home"), "{how}: {why}");
        }
        assert_eq!((plugs.len, plugs.segments), (START, 0));
        drop(plugs);
        vmm.join().unwrap();
    }
}

#[test]
fn the_vmm_gets_one_end_of_a_stream_which_does_not_block_and_the_agent_the_other() {
    let (mut plugs, vmm) = plugs(|vmm| {
        let mut ports = Vec::new();
        while let Ok(addition) = handover::receive_json(&vmm) {
            let Addition::Stream { port } = addition else { panic!("{addition:?}") };
            let [fd] = handover::receive_batch(&vmm).unwrap().try_into().unwrap();
            let mut stream = UnixStream::from(fd);
            assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            stream.write_all(format!("this is port {port}").as_bytes()).unwrap();
            ports.push(port);
            handover::send_json(&vmm, &Answer::Done).unwrap();
        }
        ports
    });
    for port in [1025, 1088] {
        let mut text = String::new();
        // Nobody has the other end any more, so the text ends.
        plugs.open_port(port).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("this is port {port}"));
    }
    for port in [0, 1024, 1089, u32::MAX] {
        let why = text(plugs.open_port(port));
        assert!(
            why.ends_with(&format!(
                "port {port} of the home cannot get a stream: it is not one of 1025 to 1088"
            )),
            "{why}"
        );
    }
    drop(plugs);
    assert_eq!(vmm.join().unwrap(), [1025, 1088]);
}

#[test]
fn a_port_that_the_vmm_refuses_leaves_everything_as_it_was() {
    let (mut plugs, vmm) = plugs(|vmm| {
        let mut kept = Vec::new();
        for answer in [Answer::Refused { why: "port 1025 is in use".into() }, Answer::Done] {
            let _: Addition = handover::receive_json(&vmm).unwrap();
            kept.extend(handover::receive_batch(&vmm).unwrap());
            handover::send_json(&vmm, &answer).unwrap();
        }
        receive(&vmm).unwrap();
        handover::send_json(&vmm, &Answer::Done).unwrap();
    });
    let why = text(plugs.open_port(1025));
    assert!(why.ends_with("the VMM says: port 1025 is in use"), "{why}");
    plugs.open_port(1026).unwrap();
    assert_eq!(plugs.add_image(&image(3, 4096)).unwrap(), START);
    vmm.join().unwrap();
}
