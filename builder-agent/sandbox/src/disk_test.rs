//! The agent's end of a growing disk against VMMs that follow the rules, and against hostile ones.

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

/// A disk whose other end is played by `vmm`.
fn disk<T: Send + 'static>(vmm: impl FnOnce(UnixStream) -> T + Send + 'static) -> (Disk, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Disk::new(ours, 0, None).unwrap(), std::thread::spawn(move || vmm(theirs)))
}

/// Receives an addition, and counts its segments and its files, which it closes.
fn receive(vmm: &UnixStream) -> io::Result<(usize, usize)> {
    let Addition { segments } = handover::receive_json(vmm)?;
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
    let (mut disk, vmm) = disk(|vmm| {
        let mut counts = Vec::new();
        while let Ok(count) = receive(&vmm) {
            counts.push(count);
            handover::send_json(&vmm, &Answer::Mapped).unwrap();
        }
        counts
    });
    assert_eq!(disk.add(&image(1, 4096)).unwrap(), START);
    assert_eq!(disk.add(&image(300, 8192)).unwrap(), START + 4096);
    assert_eq!(disk.add(&image(2, MIB)).unwrap(), START + 4096 + 300 * 8192);
    drop(disk);
    assert_eq!(vmm.join().unwrap(), [(1, 1), (300, 300), (2, 2)]);
}

#[test]
fn an_image_that_the_vmm_refuses_takes_no_place() {
    let (mut disk, vmm) = disk(|vmm| {
        for answer in [Answer::Refused { why: "not\x1b[2J now".into() }, Answer::Mapped] {
            receive(&vmm).unwrap();
            handover::send_json(&vmm, &answer).unwrap();
        }
    });
    let why = text(disk.add(&image(3, 4096)));
    assert!(why.ends_with("the VMM says: not\u{fffd}[2J now"), "{why}");
    assert_eq!(disk.add(&image(3, 4096)).unwrap(), START);
    assert_eq!((disk.len, disk.segments), (START + 3 * 4096, 3));
    vmm.join().unwrap();
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_sent() {
    let (mut disk, vmm) = disk(|mut vmm| vmm.read_to_end(&mut Vec::new()).unwrap());
    disk.len = CAPACITY - MIB;
    disk.segments = SEGMENTS_MAX - 2;
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
        let why = text(disk.add(&image));
        assert!(why.contains(expected), "{why}");
    }
    drop(disk);
    assert_eq!(vmm.join().unwrap(), 0);
}

#[test]
fn a_disk_of_all_its_bytes_and_parts_is_full_and_not_more() {
    let (mut disk, vmm) = disk(|vmm| {
        receive(&vmm).unwrap();
        handover::send_json(&vmm, &Answer::Mapped).unwrap();
    });
    disk.len = CAPACITY - 2 * 4096;
    disk.segments = SEGMENTS_MAX - 2;
    assert_eq!(disk.add(&image(2, 4096)).unwrap(), CAPACITY - 2 * 4096);
    assert!(disk.add(&image(1, 4096)).is_err());
    vmm.join().unwrap();
}

/// Whatever the VMM does in place of an answer, the agent goes on in time, and the disk is over.
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
        let (mut disk, vmm) = disk(move |vmm| hostile(&vmm, how));
        disk.patience = Duration::from_millis(300);
        let began = Instant::now();
        // For those who do not read, more than the socket holds; for the others little, so that they come to their answer.
        let count = if matches!(how, 0 | 1 | 7) { 30_000 } else { 1 };
        let why = text(disk.add(&Image { segments: vec![segment(1 << 50, 1 << 20); count] }));
        assert!(began.elapsed() < Duration::from_secs(5), "{how}: {:?}", began.elapsed());
        assert!(why.contains("the VMM"), "{how}: {why}");
        let why = text(disk.add(&image(1, 4096)));
        assert!(why.contains("open a new home"), "{how}: {why}");
        assert_eq!((disk.len, disk.segments), (START, 0));
        drop(disk);
        vmm.join().unwrap();
    }
}
