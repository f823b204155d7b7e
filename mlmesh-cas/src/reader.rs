//! Reading an object while checking it.

use std::fs::File;
use std::io::{self, Cursor, Read};

use mlmesh_model::{Digest, ObjectId};
use sha2::{Digest as _, Sha256};

/// The content of an object. The read that would report the end fails with
/// `InvalidData` instead when the content is not what the object's id says.
#[derive(Debug)]
pub struct ObjectReader {
    size: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Small, read and checked as a whole.
    Checked(Cursor<Vec<u8>>),
    /// Large, hashed while it is read.
    Unchecked {
        id: ObjectId,
        file: File,
        hasher: Sha256,
    },
}

impl ObjectReader {
    /// Bytes of the whole content.
    pub const fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn checked(content: Vec<u8>) -> Self {
        Self {
            size: content.len() as u64,
            source: Source::Checked(Cursor::new(content)),
        }
    }

    pub(crate) fn unchecked(id: ObjectId, file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self {
            size,
            source: Source::Unchecked {
                id,
                file,
                hasher: Sha256::new(),
            },
        })
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Checked(content) => content.read(buffer),
            Source::Unchecked { id, file, hasher } => {
                let read = file.read(buffer)?;
                hasher.update(&buffer[..read]);
                if read == 0 && !buffer.is_empty() {
                    let actual = Digest::from_bytes(hasher.clone().finalize().into());
                    if actual != id.0 {
                        let text = format!(
                            "object `{id}` is damaged in the store, its bytes have the digest `{actual}`"
                        );
                        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                    }
                }
                Ok(read)
            }
        }
    }
}
