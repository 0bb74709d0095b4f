//! Extracts the ELF `vmlinux` from a distribution kernel's bzImage.
//!
//! The VMM of the crate `sandbox` enters the kernel through the PVH note of the ELF file, so the guest does not spend
//! time on decompression. Layout: kernel `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header". The image
//! comes from a signed package; nevertheless every offset in it is checked before use.
//! Not here: the source of the package (`archive`).

use crate::tool::{self, ToolError};
use std::process::Command;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL_VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// Boot protocol 2.08 introduced `payload_offset`.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;

#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("not a bzImage: {0}")]
    NotBzImage(&'static str),
    #[error("the bzImage's payload lies outside of the file ({offset}+{length} of {size} bytes)")]
    PayloadOutside { offset: usize, length: usize, size: usize },
    #[error(
        "the kernel's payload starts with {magic:02x?}, which is not zstd, xz or gzip\nhint:  add that compression to image/src/kernel.rs"
    )]
    UnknownCompression { magic: Vec<u8> },
    /// An incomplete kernel would boot and crash later.
    #[error("the unpacked kernel has {got} bytes, its trailer promises {want}")]
    WrongSize { got: usize, want: usize },
    #[error("the unpacked kernel is not an ELF file")]
    NotElf,
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Unpacks the ELF kernel from the bytes of a bzImage (`/boot/vmlinuz-*`).
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let payload = payload(image)?;
    // The kernel's build appends the unpacked size to each payload except gzip, which has its own copy at the
    // same place.
    let (body, trailer) = payload
        .split_last_chunk::<4>()
        .ok_or(ExtractError::NotBzImage("the payload is shorter than its size field"))?;
    let mut command;
    let unpacked = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            command = Command::new("zstd");
            tool::output_with_input(command.arg("-dcq"), body, "unpack the kernel")?
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            command = Command::new("xz");
            tool::output_with_input(command.arg("-dc"), body, "unpack the kernel")?
        }
        [0x1f, 0x8b, ..] => {
            command = Command::new("gzip");
            tool::output_with_input(command.arg("-dc"), payload, "unpack the kernel")?
        }
        other => {
            return Err(ExtractError::UnknownCompression { magic: other[..other.len().min(6)].to_vec() });
        }
    };
    let want = u32::from_le_bytes(*trailer) as usize;
    if unpacked.len() != want {
        return Err(ExtractError::WrongSize { got: unpacked.len(), want });
    }
    if !unpacked.starts_with(b"\x7fELF") {
        return Err(ExtractError::NotElf);
    }
    Ok(unpacked)
}

/// The compressed payload, found through the setup header.
fn payload(image: &[u8]) -> Result<&[u8], ExtractError> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().expect("four bytes were asked for")))
    };
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(ExtractError::NotBzImage("the setup header's magic `HdrS` is missing"));
    }
    if word(PROTOCOL_VERSION).is_none_or(|version| (version as u16) < PROTOCOL_WITH_PAYLOAD) {
        return Err(ExtractError::NotBzImage("its boot protocol is older than 2.08"));
    }
    let (Some(offset), Some(length)) = (word(PAYLOAD_OFFSET), word(PAYLOAD_LENGTH)) else {
        return Err(ExtractError::NotBzImage("it ends within the setup header"));
    };
    // Zero means four, for compatibility with the first version of the format.
    let sectors = match image[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let offset = (sectors + 1) * 512 + offset as usize;
    let length = length as usize;
    image.get(offset..offset + length).ok_or(ExtractError::PayloadOutside {
        offset,
        length,
        size: image.len(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage around `payload`, one setup sector.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn zstd(contents: &[u8], promised: u32) -> Vec<u8> {
        let mut packed = tool::output_with_input(Command::new("zstd").arg("-cq"), contents, "pack").unwrap();
        packed.extend_from_slice(&promised.to_le_bytes());
        packed
    }

    pub(crate) fn zstd_image(elf: &[u8]) -> Vec<u8> {
        image(&zstd(elf, elf.len() as u32))
    }

    #[test]
    fn the_elf_inside_a_zstd_image_comes_out() {
        let elf = [b"\x7fELF".as_slice(), &[5; 10_000]].concat();
        assert_eq!(vmlinux(&image(&zstd(&elf, elf.len() as u32))).unwrap(), elf);
    }

    #[test]
    fn a_kernel_of_the_wrong_size_is_refused() {
        let error = vmlinux(&image(&zstd(b"\x7fELF....", 9))).unwrap_err();
        assert!(matches!(error, ExtractError::WrongSize { got: 8, want: 9 }), "{error}");
    }

    #[test]
    fn a_payload_outside_the_file_is_refused() {
        let mut broken = image(b"\x28\xb5\x2f\xfd....");
        broken[PAYLOAD_OFFSET + 3] = 0x7f;
        assert!(matches!(vmlinux(&broken), Err(ExtractError::PayloadOutside { .. })));
    }

    #[test]
    fn something_else_than_a_kernel_is_refused() {
        assert!(matches!(vmlinux(b"\x7fELF"), Err(ExtractError::NotBzImage(_))));
        assert!(matches!(vmlinux(&image(b"LZH..........")), Err(ExtractError::UnknownCompression { .. })));
        let text = b"hello kernel";
        assert!(matches!(vmlinux(&image(&zstd(text, 12))), Err(ExtractError::NotElf)));
    }
}
