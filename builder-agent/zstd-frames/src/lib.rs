//! Zstandard data of any number of frames, one after the other, as one reader. The decoder of the library reads one frame.
//!
//! A stranger chose the bytes: the window of each frame is bounded. The caller limits the size of the output.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Largest window. `zstd --ultra -22` needs this much; a decompression bomb requests gigabytes.
const MAX_WINDOW: u64 = 128 << 20;

/// A reader of the contents of all frames of `R`.
pub struct Frames<R: BufRead>(State<R>);

enum State<R: BufRead> {
    Between(R),
    Inside(Box<StreamingDecoder<R, FrameDecoder>>),
    Failed,
}

impl<R: BufRead> Frames<R> {
    pub fn new(packed: R) -> Self {
        Self(State::Between(packed))
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            // After an error the state is `Failed`, so that a later read is not mistaken for the end of the data.
            self.0 = match std::mem::replace(&mut self.0, State::Failed) {
                State::Between(mut packed) => {
                    if packed.fill_buf()?.is_empty() {
                        self.0 = State::Between(packed);
                        return Ok(0);
                    }
                    let frame = StreamingDecoder::new_with_max_window_size(packed, MAX_WINDOW);
                    State::Inside(Box::new(frame.map_err(|e| invalid(format!("not zstd data: {e}")))?))
                }
                State::Inside(mut frame) => match frame.read(buf)? {
                    0 => State::Between(frame.into_inner()),
                    n => {
                        self.0 = State::Inside(frame);
                        return Ok(n);
                    }
                },
                State::Failed => return Err(invalid("the decoder has failed before".into())),
            }
        }
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Frames::new(packed).read_to_end(&mut all)?;
        Ok(all)
    }

    fn frame(contents: &[u8]) -> Vec<u8> {
        compress_to_vec(contents, CompressionLevel::Fastest)
    }

    #[test]
    fn frames_are_read_one_after_the_other() {
        let long = b"barn".repeat(100_000);
        let packed = [frame(b"one "), frame(&long), frame(b""), frame(b" two")].concat();
        assert_eq!(unpacked(&packed).expect("good"), [&b"one "[..], &long, b" two"].concat());
        assert_eq!(unpacked(b"").expect("nothing"), b"");
    }

    #[test]
    fn damage_is_an_error_and_stays_one() {
        let packed = [frame(b"one "), b"no frame".to_vec()].concat();
        let mut frames = Frames::new(&packed[..]);
        let error = frames.read_to_end(&mut Vec::new()).expect_err("damaged");
        assert!(error.to_string().starts_with("not zstd data"), "{error}");
        frames.read(&mut [0; 10]).expect_err("not the end");
        let whole = frame(&b"barn".repeat(1000));
        unpacked(&whole[..whole.len() - 5]).expect_err("cut short");
    }

    #[test]
    fn a_frame_cannot_ask_for_a_window_of_any_size() {
        // Magic number, a header without a content size, a window of 256 MiB, one empty last block.
        let bomb = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 0x01, 0x00, 0x00];
        let fine = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x01, 0x00, 0x00];
        assert_eq!(unpacked(&fine).expect("128 MiB are accepted"), b"");
        unpacked(&bomb).expect_err("256 MiB are not");
    }
}
