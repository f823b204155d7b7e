//! Frames: the binary form in which objects travel, many in one body.
//!
//! ```text
//! "mlfrme" 0 1                                magic, zero, version
//! 1, [u8; 32] id, u64 length, content         a record, any number of times
//! 0, u64 records, [u8; 32] checksum           the end
//! ```
//!
//! Little-endian. The checksum is the SHA-256 of everything before it but the
//! contents, which the ids cover; the reader checks both. A body that was cut is
//! told from a whole one, and the records before the cut count: the sender asks
//! again what is there and goes on with the rest.

use std::io::{self, Read, Write};

use mlmesh_model::{Digest, ObjectId};
use sha2::{Digest as _, Sha256};

use crate::error::StoreError;
use crate::store::{Added, LOOSE_BYTES_MIN, ObjectStore};

/// Version of the form, as a server and its client agree on it.
pub const FRAME_VERSION: u8 = 1;
const MAGIC: [u8; 8] = *b"mlfrme\0\x01";
const RECORD: u8 = 1;
const END: u8 = 0;
/// Small objects are stored together up to this size, with one sync.
const STORE_BATCH_BYTES: usize = 8 << 20;

/// What a receiver takes from one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Records in a body.
    pub records_max: u64,
    /// Bytes of one content.
    pub record_bytes_max: u64,
    /// Bytes of all contents.
    pub total_bytes_max: u64,
}

/// Why a body is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Reading or writing failed, or the body ended too early.
    #[error("frame: {0}")]
    Io(#[from] io::Error),
    /// Another form or version.
    #[error("frame: the body is not of version {FRAME_VERSION} of this form")]
    Version,
    /// A byte that starts neither a record nor the end.
    #[error("frame: byte `{0}` starts neither a record nor the end")]
    Tag(u8),
    /// The count or the checksum at the end is wrong.
    #[error("frame: the end does not match what came before it")]
    End,
    /// More than the receiver takes.
    #[error("frame: {what} {seen}, at most {allowed} are allowed\nhint: send less in one body")]
    Limit {
        /// Of what there is too much.
        what: &'static str,
        /// How much there is.
        seen: u64,
        /// How much may be.
        allowed: u64,
    },
    /// A content with another digest than its record says.
    #[error("frame: the content of `{0}` has another digest")]
    Content(ObjectId),
    /// A source had fewer bytes than announced.
    #[error(
        "frame: `{id}` ended {missing} bytes early\nhint: the file changed, take the snapshot again"
    )]
    Short {
        /// The object.
        id: ObjectId,
        /// Bytes that were announced and did not come.
        missing: u64,
    },
}

/// Writes a body.
#[derive(Debug)]
pub struct FrameWriter<W: Write> {
    output: W,
    records: u64,
    checksum: Sha256,
}

/// Reads a body record by record, in memory that does not grow with it.
#[derive(Debug)]
pub struct FrameReader<R: Read> {
    input: R,
    limits: FrameLimits,
    records: u64,
    bytes: u64,
    checksum: Sha256,
    state: State,
    /// What the last failed read through [`Read`] failed at.
    failure: Option<FrameError>,
}

#[derive(Debug)]
enum State {
    Start,
    Between,
    Content {
        id: ObjectId,
        left: u64,
        hasher: Sha256,
    },
    End,
}

/// The head of a record. Its content is read from the [`FrameReader`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What the content should be.
    pub id: ObjectId,
    /// Bytes of the content.
    pub length: u64,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            records_max: 1 << 20,
            record_bytes_max: 64 << 20,
            total_bytes_max: 1 << 30,
        }
    }
}

impl<W: Write> FrameWriter<W> {
    /// Begins a body.
    pub fn new(mut output: W) -> Result<Self, FrameError> {
        output.write_all(&MAGIC)?;
        Ok(Self {
            output,
            records: 0,
            checksum: Sha256::new_with_prefix(MAGIC),
        })
    }

    /// Writes a record whose content is in memory.
    pub fn record(&mut self, id: ObjectId, content: &[u8]) -> Result<(), FrameError> {
        self.head(id, content.len() as u64)?;
        Ok(self.output.write_all(content)?)
    }

    /// Writes a record with `length` bytes of `content`.
    pub fn stream(
        &mut self,
        id: ObjectId,
        length: u64,
        content: impl Read,
    ) -> Result<(), FrameError> {
        self.head(id, length)?;
        let copied = io::copy(&mut content.take(length), &mut self.output)?;
        if copied == length {
            Ok(())
        } else {
            Err(FrameError::Short {
                id,
                missing: length - copied,
            })
        }
    }

    /// Ends the body and gives the output back.
    pub fn finish(mut self) -> Result<W, FrameError> {
        let mut end = [END; 9];
        end[1..].copy_from_slice(&self.records.to_le_bytes());
        self.checksum.update(end);
        self.output.write_all(&end)?;
        self.output.write_all(&self.checksum.finalize())?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn head(&mut self, id: ObjectId, length: u64) -> Result<(), FrameError> {
        let mut head = [RECORD; 41];
        head[1..33].copy_from_slice(id.0.as_bytes());
        head[33..].copy_from_slice(&length.to_le_bytes());
        self.checksum.update(head);
        self.records += 1;
        Ok(self.output.write_all(&head)?)
    }
}

impl<R: Read> FrameReader<R> {
    /// Reads from `input`, which the caller has buffered.
    pub fn new(input: R, limits: FrameLimits) -> Self {
        Self {
            input,
            limits,
            records: 0,
            bytes: 0,
            checksum: Sha256::new_with_prefix(MAGIC),
            state: State::Start,
            failure: None,
        }
    }

    /// The next record, after the content of the one before was read to its end;
    /// `None` when the body is whole.
    pub fn next_record(&mut self) -> Result<Option<Record>, FrameError> {
        self.skip_content()?;
        match self.state {
            State::Start => {
                if self.take::<8>()? != MAGIC {
                    return Err(FrameError::Version);
                }
                self.state = State::Between;
            }
            State::End => return Ok(None),
            State::Between | State::Content { .. } => {}
        }
        match self.take::<1>()? {
            [RECORD] => self.head().map(Some),
            [END] => self.end().map(|()| None),
            [tag] => Err(FrameError::Tag(tag)),
        }
    }

    /// Reads the whole content of the record that [`Self::next_record`] gave.
    pub fn content(&mut self, content: &mut Vec<u8>) -> Result<(), FrameError> {
        content.clear();
        let mut buffer = [0_u8; 8 << 10];
        loop {
            match self.read_content(&mut buffer)? {
                0 => return Ok(()),
                read => content.extend_from_slice(&buffer[..read]),
            }
        }
    }

    fn head(&mut self) -> Result<Record, FrameError> {
        let head = self.take::<40>()?;
        self.checksum.update([RECORD]);
        self.checksum.update(head);
        let (mut id, mut length) = ([0_u8; 32], [0_u8; 8]);
        id.copy_from_slice(&head[..32]);
        length.copy_from_slice(&head[32..]);
        let record = Record {
            id: ObjectId(Digest::from_bytes(id)),
            length: u64::from_le_bytes(length),
        };
        self.records += 1;
        self.bytes = self.bytes.saturating_add(record.length);
        let limits = self.limits;
        for (what, seen, allowed) in [
            ("records:", self.records, limits.records_max),
            (
                "bytes of one object:",
                record.length,
                limits.record_bytes_max,
            ),
            ("bytes of all objects:", self.bytes, limits.total_bytes_max),
        ] {
            if seen > allowed {
                return Err(FrameError::Limit {
                    what,
                    seen,
                    allowed,
                });
            }
        }
        self.state = State::Content {
            id: record.id,
            left: record.length,
            hasher: Sha256::new(),
        };
        Ok(record)
    }

    fn end(&mut self) -> Result<(), FrameError> {
        let count = self.take::<8>()?;
        self.checksum.update([END]);
        self.checksum.update(count);
        let checksum = self.take::<32>()?;
        let expected: [u8; 32] = self.checksum.clone().finalize().into();
        if u64::from_le_bytes(count) != self.records || checksum != expected {
            return Err(FrameError::End);
        }
        self.state = State::End;
        Ok(())
    }

    /// Reads on in the content; 0 at its end, which is where its digest is checked.
    fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, FrameError> {
        let State::Content { id, left, hasher } = &mut self.state else {
            return Ok(0);
        };
        if *left == 0 {
            let actual: [u8; 32] = std::mem::take(hasher).finalize().into();
            let id = *id;
            self.state = State::Between;
            return if actual == *id.0.as_bytes() {
                Ok(0)
            } else {
                Err(FrameError::Content(id))
            };
        }
        let room = usize::try_from(*left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.input.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        hasher.update(&buffer[..read]);
        *left -= read as u64;
        Ok(read)
    }

    fn skip_content(&mut self) -> Result<(), FrameError> {
        let mut buffer = [0_u8; 8 << 10];
        while self.read_content(&mut buffer)? > 0 {}
        Ok(())
    }

    fn take<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], FrameError> {
        let mut bytes = [0_u8; BYTES];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// The content of the present record. Damage is an error of kind `InvalidData`.
impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_content(buffer).map_err(|error| {
            let kind = match &error {
                FrameError::Io(error) => error.kind(),
                _ => io::ErrorKind::InvalidData,
            };
            let told = io::Error::new(kind, error.to_string());
            self.failure = Some(error);
            told
        })
    }
}

impl ObjectStore {
    /// Stores every object of a body. What is acknowledged in parts stays also
    /// when the body is cut: `Err` says only that not all of it came.
    pub fn receive(&self, input: impl Read, limits: FrameLimits) -> Result<Added, StoreError> {
        self.receive_each(input, limits, &mut |_| {})
    }

    /// The same, which names each object that came whole, whether it was there or not.
    /// None of them counts when an error is returned.
    pub fn receive_each(
        &self,
        input: impl Read,
        limits: FrameLimits,
        came: &mut dyn FnMut(ObjectId),
    ) -> Result<Added, StoreError> {
        let mut frames = FrameReader::new(input, limits);
        let mut batch: Vec<(ObjectId, Vec<u8>)> = Vec::new();
        let mut batch_bytes = 0;
        let mut added = Added::default();
        let result = loop {
            let record = match frames.next_record() {
                Ok(Some(record)) => record,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            };
            if record.length >= LOOSE_BYTES_MIN {
                let new = !self.has(&[record.id])?[0];
                if let Err(error) = self.put_stream(&mut frames, Some(record.id)) {
                    break Err(frames.failure.take().map_or(error, StoreError::Frame));
                }
                came(record.id);
                added += Added {
                    objects: u64::from(new),
                    bytes: if new { record.length } else { 0 },
                };
                continue;
            }
            let mut content = Vec::with_capacity(record.length as usize);
            if let Err(error) = frames.content(&mut content) {
                break Err(error.into());
            }
            batch_bytes += content.len();
            came(record.id);
            batch.push((record.id, content));
            if batch_bytes >= STORE_BATCH_BYTES {
                added += self.put_batch(batch.drain(..))?;
                batch_bytes = 0;
            }
        };
        added += self.put_batch(batch)?;
        result.map(|()| added)
    }
}

impl std::ops::AddAssign for Added {
    fn add_assign(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(contents: &[&[u8]]) -> Vec<u8> {
        let mut writer = FrameWriter::new(Vec::new()).unwrap();
        for content in contents {
            writer
                .record(ObjectId(Digest::of(content)), content)
                .unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8], limits: FrameLimits) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut reader = FrameReader::new(bytes, limits);
        let mut contents = Vec::new();
        while reader.next_record()?.is_some() {
            let mut content = Vec::new();
            reader.content(&mut content)?;
            contents.push(content);
        }
        Ok(contents)
    }

    #[test]
    fn contents_arrive_and_every_cut_and_flipped_bit_is_told() {
        let bytes = body(&[b"one", b"", b"three"]);
        let limits = FrameLimits::default();
        assert_eq!(read(&bytes, limits).unwrap(), [&b"one"[..], b"", b"three"]);
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut], limits).is_err(), "cut {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped, limits).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn limits_hold_before_anything_is_read_into_memory() {
        let bytes = body(&[b"one", b"three"]);
        let limits = FrameLimits {
            records_max: 2,
            record_bytes_max: 5,
            total_bytes_max: 8,
        };
        assert!(read(&bytes, limits).is_ok());
        for smaller in [
            FrameLimits {
                records_max: 1,
                ..limits
            },
            FrameLimits {
                record_bytes_max: 4,
                ..limits
            },
            FrameLimits {
                total_bytes_max: 7,
                ..limits
            },
        ] {
            assert!(
                matches!(read(&bytes, smaller), Err(FrameError::Limit { .. })),
                "{smaller:?}"
            );
        }
    }

    #[test]
    fn a_source_that_is_too_short_is_told() {
        let mut writer = FrameWriter::new(Vec::new()).unwrap();
        let result = writer.stream(ObjectId(Digest::of(b"four")), 4, &b"fou"[..]);
        assert!(matches!(result, Err(FrameError::Short { missing: 1, .. })));
    }
}
