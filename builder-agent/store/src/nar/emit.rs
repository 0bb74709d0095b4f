//! tbd
/// The NAR of one object, byte for byte as it was taken in.
#[derive(Debug)]
pub struct NarReader {}
impl NarReader {
    /// Bytes of the whole NAR.
    #[must_use]
    pub fn size(&self) -> u64 { unimplemented!() }
}
impl std::io::Read for NarReader {
    fn read(&mut self, _buf: &mut [u8]) -> std::io::Result<usize> { unimplemented!() }
}
