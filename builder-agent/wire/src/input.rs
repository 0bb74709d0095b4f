//! The bytes from the client: one buffer, and primitives that read from it or from a framed body.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix_derivation::{CAHash, NixHash, StorePath};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::error::{Problem, WireError, quote};
use crate::limits::{
    BUFFER_BYTES, MAX_CA_BYTES, MAX_HASH_BYTES, MAX_PATHS, MAX_REQUEST_BYTES, MAX_SIGNATURE_BYTES,
    MAX_SIGNATURES, MAX_STORE_PATH_BYTES, UNMETERED_BYTES,
};
use crate::patience::Patience;
use crate::terms::Meter;

/// Reads of at least this size bypass the buffer. The transport is an ssh channel with a buffer of its own,
/// so this crate does not have to reduce the number of its reads.
const PAST_BUFFER_BYTES: usize = 4 << 10;

/// A buffered reader that knows whether more bytes have arrived, and notices a hang-up without reading.
pub(crate) struct Input<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    eof: bool,
    /// The time limit for the rest of a message that has begun.
    patience: Patience,
}

impl<R: AsyncRead + Unpin> Input<R> {
    pub fn new(inner: R, stall: Option<Duration>) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { inner, buffer, start: 0, end: 0, eof: false, patience: Patience::new(stall) }
    }

    /// Starts the time limit anew, for a new message.
    pub fn begin(&mut self) {
        self.patience.reset();
    }

    /// True if all bytes that arrived have been read.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let mut buf = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
        let got = buf.filled().len();
        self.end += got;
        self.eof = got == 0;
        Poll::Ready(Ok(got))
    }

    /// Reads without reading ahead, for a few bytes that precede many: those many bytes then bypass the
    /// buffer.
    pub fn poll_bare(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_empty() && !self.eof {
            return self.poll_past(cx, buf);
        }
        Pin::new(self).poll_read(cx, buf)
    }

    /// Reads directly from the transport.
    fn poll_past(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.patience.moved((buf.filled().len() - before) as u64);
        }
        self.patience.poll_read(cx, read)
    }

    /// Waits for a byte. False: the client hung up.
    pub async fn wait(&mut self) -> io::Result<bool> {
        if !self.is_empty() {
            return Ok(true);
        }
        std::future::poll_fn(|cx| self.poll_fill(cx)).await.map(|got| got > 0)
    }

    /// Ready when the client hung up or the transport failed. Keeps bytes that arrive meanwhile; when they
    /// fill the buffer, a hang-up can no longer be seen and this waits for ever.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.end == self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
                if self.end == self.buffer.len() {
                    return Poll::Pending;
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Input<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_empty() {
            if buf.remaining() >= PAST_BUFFER_BYTES && !this.eof {
                return this.poll_past(cx, buf);
            }
            let filled = this.poll_fill(cx);
            if let Poll::Ready(Ok(got)) = &filled {
                this.patience.moved(*got as u64);
            }
            ready!(this.patience.poll_read(cx, filled))?;
        }
        let len = buf.remaining().min(this.end - this.start);
        buf.put_slice(&this.buffer[this.start..this.start + len]);
        this.start += len;
        Poll::Ready(Ok(()))
    }
}

/// Reads the fields of one message. Counts the bytes read, so that many small fields cannot exceed the limit
/// of one request.
pub(crate) struct Fields<'a, S> {
    source: &'a mut S,
    op: &'static str,
    left: u64,
    limit: u64,
    /// Receives the memory that the message takes.
    meter: Option<&'a dyn Meter>,
    /// Memory of its values besides their bytes.
    overhead: u64,
    /// The last number that the meter received.
    metered: u64,
}

/// The meter is called each time the memory has grown by this much.
const METER_STEP: u64 = 256 << 10;
/// Memory of one value in a list or a map besides its bytes: its header, its slot, and the allocator's
/// overhead.
const VALUE_OVERHEAD: u64 = 64;
/// Number of copies: while a request is answered, its lists are copied and sorted.
const COPIES: u64 = 2;

impl<'a, S: AsyncRead + Unpin> Fields<'a, S> {
    pub fn new(source: &'a mut S, op: &'static str) -> Self {
        Self::within(source, op, MAX_REQUEST_BYTES)
    }

    /// The fields of a message that has at most `limit` bytes.
    pub fn within(source: &'a mut S, op: &'static str, limit: u64) -> Self {
        Self { source, op, left: limit, limit, meter: None, overhead: 0, metered: UNMETERED_BYTES }
    }

    /// Reports the memory of the message to this meter.
    pub fn metered(mut self, meter: Option<&'a dyn Meter>) -> Self {
        self.meter = meter;
        self
    }

    /// Counts one more value of a list or a map.
    pub fn one_more(&mut self, field: &'static str) -> Result<(), WireError> {
        self.overhead += VALUE_OVERHEAD;
        self.meter(field)
    }

    fn meter(&mut self, field: &'static str) -> Result<(), WireError> {
        let Some(meter) = self.meter else { return Ok(()) };
        let takes = COPIES * (self.limit - self.left + self.overhead);
        if takes <= self.metered {
            return Ok(());
        }
        self.metered = takes + METER_STEP;
        meter.takes(self.metered).map_err(|why| self.bad(field, Problem::NoMemory(why)))
    }

    pub fn bad(&self, field: &'static str, problem: Problem) -> WireError {
        WireError::Field { op: self.op, field, problem }
    }

    pub fn unexpected(&self, field: &'static str, value: &[u8], expected: &'static str) -> WireError {
        self.bad(field, Problem::Unexpected { value: quote(value), expected })
    }

    async fn exact(&mut self, field: &'static str, buf: &mut [u8]) -> Result<(), WireError> {
        match self.source.read_exact(buf).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(WireError::Truncated { op: self.op, field })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn spend(&mut self, field: &'static str, len: u64) -> Result<(), WireError> {
        match self.left.checked_sub(len) {
            Some(left) => self.left = left,
            None => return Err(self.bad(field, Problem::RequestTooLarge { len, limit: self.limit })),
        }
        self.meter(field)
    }

    pub async fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.spend(field, 8)?;
        let mut bytes = [0; 8];
        self.exact(field, &mut bytes).await?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A number up to `limit`.
    pub async fn at_most(&mut self, field: &'static str, limit: u64) -> Result<u64, WireError> {
        let got = self.u64(field).await?;
        if got > limit {
            return Err(self.bad(field, Problem::OutOfRange { got, limit }));
        }
        Ok(got)
    }

    /// Any number but 0 is true, as in Nix.
    pub async fn bool(&mut self, field: &'static str) -> Result<bool, WireError> {
        Ok(self.u64(field).await? != 0)
    }

    /// The number of entries that follow.
    pub async fn count(&mut self, field: &'static str, limit: u64) -> Result<u64, WireError> {
        let count = self.u64(field).await?;
        if count > limit {
            return Err(self.bad(field, Problem::TooMany { count, limit }));
        }
        Ok(count)
    }

    /// A length, that many bytes, and zeros up to a multiple of 8. Memory grows with the bytes that arrive
    /// and not with the announced length.
    pub async fn bytes(&mut self, field: &'static str, limit: u64) -> Result<Vec<u8>, WireError> {
        self.overhead += VALUE_OVERHEAD;
        let len = self.u64(field).await?;
        if len > limit {
            return Err(self.bad(field, Problem::TooLong { len, limit }));
        }
        self.spend(field, len)?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let have = bytes.len();
            let more = (len - have as u64).min(BUFFER_BYTES as u64) as usize;
            bytes.resize(have + more, 0);
            self.exact(field, &mut bytes[have..]).await?;
        }
        let mut padding = [0; 8];
        let padding = &mut padding[..padding_after(len)];
        self.exact(field, padding).await?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(self.bad(field, Problem::Padding { len }));
        }
        Ok(bytes)
    }

    pub async fn string(&mut self, field: &'static str, limit: u64) -> Result<String, WireError> {
        let bytes = self.bytes(field, limit).await?;
        String::from_utf8(bytes)
            .map_err(|error| self.bad(field, Problem::NotUtf8 { value: quote(error.as_bytes()) }))
    }

    pub async fn strings(
        &mut self,
        field: &'static str,
        count: u64,
        limit: u64,
    ) -> Result<Vec<String>, WireError> {
        let mut strings = Vec::new();
        for _ in 0..self.count(field, count).await? {
            strings.push(self.string(field, limit).await?);
        }
        Ok(strings)
    }

    pub async fn byte_strings(
        &mut self,
        field: &'static str,
        count: u64,
        limit: u64,
    ) -> Result<Vec<Vec<u8>>, WireError> {
        let mut strings = Vec::new();
        for _ in 0..self.count(field, count).await? {
            strings.push(self.bytes(field, limit).await?);
        }
        Ok(strings)
    }

    pub async fn path(&mut self, field: &'static str) -> Result<StorePath, WireError> {
        let bytes = self.bytes(field, MAX_STORE_PATH_BYTES).await?;
        self.parse_path(field, &bytes)
    }

    pub async fn maybe_path(&mut self, field: &'static str) -> Result<Option<StorePath>, WireError> {
        let bytes = self.bytes(field, MAX_STORE_PATH_BYTES).await?;
        if bytes.is_empty() { Ok(None) } else { self.parse_path(field, &bytes).map(Some) }
    }

    /// Parses `/nix/store/<hash>-<name>`.
    pub fn parse_path(&self, field: &'static str, bytes: &[u8]) -> Result<StorePath, WireError> {
        StorePath::from_absolute_path(bytes)
            .map_err(|source| self.bad(field, Problem::StorePath { value: quote(bytes), source }))
    }

    /// Parses `<hash>-<name>`.
    pub fn parse_base_name(&self, field: &'static str, bytes: &[u8]) -> Result<StorePath, WireError> {
        StorePath::from_basename(bytes)
            .map_err(|source| self.bad(field, Problem::StorePath { value: quote(bytes), source }))
    }

    pub async fn paths(&mut self, field: &'static str) -> Result<Vec<StorePath>, WireError> {
        let mut paths = Vec::new();
        for _ in 0..self.count(field, MAX_PATHS).await? {
            paths.push(self.path(field).await?);
        }
        Ok(paths)
    }

    pub async fn path_set(&mut self, field: &'static str) -> Result<BTreeSet<StorePath>, WireError> {
        Ok(self.paths(field).await?.into_iter().collect())
    }

    /// SHA-256, in any notation that Nix has, with or without the algorithm's name before it.
    pub async fn sha256(&mut self, field: &'static str) -> Result<[u8; 32], WireError> {
        let value = self.string(field, MAX_HASH_BYTES).await?;
        let parsed = match value.contains([':', '-']) {
            true => NixHash::parse(&value),
            false => NixHash::parse(&format!("sha256:{value}")),
        };
        match parsed {
            Ok(NixHash::Sha256(digest)) => Ok(digest),
            Ok(_) => Err(self.unexpected(field, value.as_bytes(), "a SHA-256 hash")),
            Err(source) => Err(self.bad(field, Problem::Hash { value: quote(value.as_bytes()), source })),
        }
    }

    pub async fn maybe_ca(&mut self, field: &'static str) -> Result<Option<CAHash>, WireError> {
        let value = self.string(field, MAX_CA_BYTES).await?;
        if value.is_empty() {
            return Ok(None);
        }
        CAHash::parse(&value)
            .map(Some)
            .map_err(|source| self.bad(field, Problem::Hash { value: quote(value.as_bytes()), source }))
    }

    pub async fn signatures(&mut self, field: &'static str) -> Result<Vec<String>, WireError> {
        self.strings(field, MAX_SIGNATURES, MAX_SIGNATURE_BYTES).await
    }

    /// Pairs of strings; of two equal keys the last counts.
    pub async fn byte_map(
        &mut self,
        field: &'static str,
        count: u64,
        key_limit: u64,
        value_limit: u64,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, WireError> {
        let mut map = BTreeMap::new();
        for _ in 0..self.count(field, count).await? {
            let key = self.bytes(field, key_limit).await?;
            map.insert(key, self.bytes(field, value_limit).await?);
        }
        Ok(map)
    }
}

/// Number of padding bytes after a string of this length.
pub(crate) fn padding_after(len: u64) -> usize {
    (8 - len % 8) as usize % 8
}
