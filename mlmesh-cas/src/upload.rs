//! Uploads in pieces: a large object may come over several requests, and goes on
//! where it stopped after a lost connection or a killed daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use mlmesh_model::{Digest, ObjectId};
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use crate::error::{StoreError, io_error};
use crate::fault;
use crate::place::{self, Locked};
use crate::store::{LOOSE_BYTES_MIN, ObjectStore};

/// How far an upload has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// The next byte to send is this one.
    Partial {
        /// Bytes that are there.
        offset: u64,
    },
    /// The object is in the store.
    Complete,
}

/// Who sends pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender<'a> {
    /// Somebody for whom what is there need not be sent.
    Trusted,
    /// Somebody, by name, who has to send the whole to show that they have it.
    Proving(&'a str),
}

const COPY_BUFFER_BYTES: usize = 256 << 10;

impl ObjectStore {
    /// Where the upload of `id` stands; a new one is at 0. A sender that has to prove
    /// that it has the content is not helped by an object that is there.
    pub fn upload_position(&self, id: ObjectId, sender: Sender<'_>) -> Result<Upload, StoreError> {
        if sender == Sender::Trusted && self.has(&[id])?[0] {
            return Ok(Upload::Complete);
        }
        let path = self.partial(id, sender);
        let offset = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(io_error("look at", &path, source)),
        };
        Ok(Upload::Partial { offset })
    }

    /// Appends what `piece` gives to the upload of `id`, which has `size` bytes in
    /// all. A piece that does not start where the upload stands changes nothing;
    /// the answer says where it stands. The last piece stores the object.
    pub fn upload(
        &self,
        id: ObjectId,
        size: u64,
        offset: u64,
        mut piece: impl Read,
        sender: Sender<'_>,
    ) -> Result<Upload, StoreError> {
        self.require_writer()?;
        let _operation = self.operation();
        if sender == Sender::Trusted && self.has(&[id])?[0] {
            return Ok(Upload::Complete);
        }
        let path = self.partial(id, sender);
        let io = |source| io_error("upload to", &path, source);
        let mut locked = open_partial(&path).map_err(io)?;
        let file = &mut locked.0;
        let mut position = file.seek(SeekFrom::End(0)).map_err(io)?;
        if position != offset {
            return Ok(Upload::Partial { offset: position });
        }
        let mut buffer = vec![0_u8; COPY_BUFFER_BYTES];
        loop {
            let read = match piece.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // What has come stays, the sender goes on behind it.
                Err(source) => return Err(io(source)),
            };
            if read == 0 {
                break;
            }
            if position + read as u64 > size {
                return Err(StoreError::TooLarge {
                    id,
                    size: position + read as u64,
                    bytes_max: size,
                });
            }
            file.write_all(&buffer[..read]).map_err(io)?;
            position += read as u64;
            fault::point("cas.upload.append");
        }
        if position < size {
            return Ok(Upload::Partial { offset: position });
        }
        self.finish_upload(id, file, &path)
            .map(|()| Upload::Complete)
    }

    fn finish_upload(&self, id: ObjectId, file: &mut File, path: &Path) -> Result<(), StoreError> {
        let io = |source| io_error("upload to", path, source);
        let actual = digest_of(file).map_err(io)?;
        if actual != id.0 {
            // Nothing of it can be trusted; the next upload starts anew.
            fs::remove_file(path).map_err(io)?;
            return Err(StoreError::Digest {
                expected: id,
                actual,
            });
        }
        if self.has(&[id])?[0] {
            return fs::remove_file(path).map_err(io);
        }
        if file.metadata().map_err(io)?.len() < LOOSE_BYTES_MIN {
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            self.put_stream(&*file, Some(id))?;
            return fs::remove_file(path).map_err(io);
        }
        self.adopt_loose(file, path, id)
    }

    /// Who has to prove something goes on with nobody else's pieces.
    fn partial(&self, id: ObjectId, sender: Sender<'_>) -> PathBuf {
        let name = match sender {
            Sender::Trusted => id.0,
            Sender::Proving(name) => Digest::of(format!("{name} {id}").as_bytes()),
        };
        place::fanned(&self.folder("partial"), name)
    }
}

/// Opens and locks the upload, so that two senders do not mix their pieces.
fn open_partial(path: &Path) -> io::Result<Locked> {
    if let Some(folder) = path.parent() {
        place::create_folder(folder)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    match Locked::new(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(locked) => Ok(locked),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another sender is uploading this object",
        )),
        Err(errno) => Err(errno.into()),
    }
}

fn digest_of(file: &mut File) -> io::Result<Digest> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; COPY_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
            read => hasher.update(&buffer[..read]),
        }
    }
}
