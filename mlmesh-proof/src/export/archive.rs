//! The form of an export: a ZIP archive of which there is only one for its contents.
//!
//! Nothing is compressed, names are sorted, times are fixed, there is no comment, no
//! gap and no field that could say something else: all bytes follow from the listing,
//! the contents and their CRC-32. So any program reads an export, while [`read`] takes
//! only what [`write`] would have written, and every other archive (one that overlaps,
//! hides, repeats or inflates anything) is refused for its form alone.
//!
//! ```text
//!   attestation.dsse.json ─ code/… ─ outputs/… ─ … ─ directory ─ end
//!   [header name zip64? content]*   [entry]*       [zip64 end, locator]? end
//! ```
//!
//! The form is ZIP 6.3 (PKWARE's APPNOTE.TXT) with method 0, names in UTF-8 and
//! Unix modes; ZIP64 fields stand where a number needs them and nowhere else.

use std::io::{self, Read, Seek, SeekFrom, Write};

use mlmesh_cas::{Mode, PATH_BYTES_MAX, Tree, TreeEntry};
use mlmesh_model::{Digest, ObjectId};
use sha2::{Digest as _, Sha256};

/// Files that an export may have.
pub const FILES_MAX: usize = 200_000;
/// Bytes that the directory of an export may have.
pub const DIRECTORY_BYTES_MAX: u64 = 128 << 20;

const BUFFER_BYTES: usize = 256 << 10;
/// What is written with its CRC at once, instead of being mended at the end.
const HELD_BYTES_MAX: u64 = 1 << 20;
const LIMIT_32: u64 = 0xffff_ffff;
const LIMIT_16: usize = 0xffff;
const END_BYTES: u64 = 22;
const LOCATOR_BYTES: u64 = 20;
const END_64_BYTES: u64 = 56;

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The machine failed.
    #[error("the archive cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// It is not of the only form that there is.
    #[error("{at}: {rule}")]
    Form {
        /// Where, a name if there is one.
        at: String,
        /// What an archive is.
        rule: &'static str,
    },
    /// A content that is not the one of the listing.
    #[error("`{path}` has {bytes} bytes of digest {digest}, which is not what was listed")]
    Content {
        /// The file.
        path: String,
        /// Its length.
        bytes: u64,
        /// Its digest.
        digest: Digest,
    },
}

fn form(at: impl Into<String>, rule: &'static str) -> ArchiveError {
    let at = at.into();
    ArchiveError::Form { at, rule }
}

/// A file of an archive as its directory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub path: String,
    /// What it is.
    pub mode: Mode,
    /// Bytes of its content.
    pub size: u64,
    /// CRC-32 of its content.
    crc: u32,
}

/// Writes an archive of what `tree` lists; `content` hands over the bytes of a file in
/// pieces. They are held against the listing.
pub fn write<E: From<ArchiveError>>(
    out: &mut (impl Write + Seek),
    tree: &Tree,
    mut content: impl FnMut(&TreeEntry, &mut Sink<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut members: Vec<Member> = tree.entries.iter().map(Member::of).collect();
    let mut offset = 0;
    let mut late = Vec::new();
    for (entry, member) in tree.entries.iter().zip(&mut members) {
        let mut sink = Sink {
            held: Vec::new(),
            out: None,
            hasher: Sha256::new(),
            crc: crc32fast::Hasher::new(),
            bytes: 0,
        };
        if entry.size > HELD_BYTES_MAX {
            out.write_all(&member.header()).map_err(ArchiveError::Io)?;
            sink.out = Some(out);
        }
        content(entry, &mut sink)?;
        let (held, crc) = sink.end(entry)?;
        member.crc = crc;
        if entry.size > HELD_BYTES_MAX {
            late.push((offset, member.clone()));
        } else {
            out.write_all(&member.header()).map_err(ArchiveError::Io)?;
            out.write_all(&held).map_err(ArchiveError::Io)?;
        }
        offset += member.whole_bytes();
    }
    out.write_all(&directory(&members))
        .map_err(ArchiveError::Io)?;
    for (offset, member) in late {
        out.seek(SeekFrom::Start(offset))
            .map_err(ArchiveError::Io)?;
        out.write_all(&member.header()).map_err(ArchiveError::Io)?;
    }
    Ok(())
}

/// Takes the bytes of one file.
pub struct Sink<'a> {
    held: Vec<u8>,
    out: Option<&'a mut dyn Write>,
    hasher: Sha256,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.write_all(piece)?;
        Ok(piece.len())
    }

    fn write_all(&mut self, piece: &[u8]) -> io::Result<()> {
        self.bytes += piece.len() as u64;
        self.hasher.update(piece);
        self.crc.update(piece);
        match &mut self.out {
            Some(out) => out.write_all(piece),
            None if self.bytes > HELD_BYTES_MAX => Err(io::Error::other("more than was listed")),
            None => {
                self.held.extend_from_slice(piece);
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink<'_> {
    fn end(self, entry: &TreeEntry) -> Result<(Vec<u8>, u32), ArchiveError> {
        let digest = Digest::from_bytes(self.hasher.finalize().into());
        if digest != entry.object.0 || self.bytes != entry.size {
            return Err(ArchiveError::Content {
                path: entry.path.clone(),
                bytes: self.bytes,
                digest,
            });
        }
        Ok((self.held, self.crc.finalize()))
    }
}

/// Reads an archive from its beginning to its end, once. `each` is told of every piece
/// of every file, of an empty one too. The digests that come back are those of the
/// contents as they are.
pub fn read<E: From<ArchiveError>>(
    archive: &mut (impl Read + Seek),
    mut each: impl FnMut(&Member, &[u8]) -> Result<(), E>,
) -> Result<Contents, E> {
    let members = members(archive)?;
    archive.rewind().map_err(ArchiveError::Io)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut contents = Contents::default();
    for member in &members {
        let mut hasher = Sha256::new();
        let mut crc = crc32fast::Hasher::new();
        read_member(archive, member, &mut buffer, |piece| {
            hasher.update(piece);
            crc.update(piece);
            each(member, piece)
        })?;
        let digest = Digest::from_bytes(hasher.finalize().into());
        contents.entries.push(member.entry(digest));
        if crc.finalize() != member.crc {
            contents.wrong_crc.push(member.path.clone());
        }
    }
    Ok(contents)
}

/// Reads files of an archive that was [read](read) before: `each` is told of every piece of
/// those that are wanted, the others are passed over. Nothing is said about the contents;
/// whoever gets them knows their digests.
pub fn read_again<E: From<ArchiveError>>(
    archive: &mut (impl Read + Seek),
    wanted: impl Fn(&Member) -> bool,
    mut each: impl FnMut(&Member, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let members = members(archive)?;
    archive.rewind().map_err(ArchiveError::Io)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    for member in &members {
        if wanted(member) {
            read_member(archive, member, &mut buffer, |piece| each(member, piece))?;
        } else {
            let over = i64::try_from(member.whole_bytes()).unwrap_or(i64::MAX);
            let passed = archive.seek(SeekFrom::Current(over));
            passed.map_err(ArchiveError::Io)?;
        }
    }
    Ok(())
}

/// Reads one file, which begins here, through a buffer of [`BUFFER_BYTES`].
fn read_member<E: From<ArchiveError>>(
    archive: &mut impl Read,
    member: &Member,
    buffer: &mut [u8],
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let expected = member.header();
    let header = &mut buffer[..expected.len()];
    exact(archive, header, &member.path)?;
    if header != expected {
        let rule = "its header says what the directory says";
        return Err(form(&member.path, rule).into());
    }
    let mut left = member.size;
    loop {
        let bytes = left.min(BUFFER_BYTES as u64) as usize;
        let piece = &mut buffer[..bytes];
        exact(archive, piece, &member.path)?;
        each(piece)?;
        left -= bytes as u64;
        if left == 0 {
            return Ok(());
        }
    }
}

/// What an archive of the right form holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The files in order of their names.
    pub entries: Vec<TreeEntry>,
    /// Files whose CRC-32 is another one.
    pub wrong_crc: Vec<String>,
}

impl Member {
    fn of(entry: &TreeEntry) -> Self {
        Self {
            path: entry.path.clone(),
            mode: entry.mode,
            size: entry.size,
            crc: 0,
        }
    }

    fn entry(&self, digest: Digest) -> TreeEntry {
        TreeEntry {
            path: self.path.clone(),
            mode: self.mode,
            size: self.size,
            object: ObjectId(digest),
        }
    }

    fn needs_64(&self) -> bool {
        self.size >= LIMIT_32
    }

    /// Header, name and content.
    fn whole_bytes(&self) -> u64 {
        let zip64 = if self.needs_64() { 20 } else { 0 };
        30 + self.path.len() as u64 + zip64 + self.size
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.path.len());
        push_32(&mut bytes, 0x0403_4b50);
        self.push_common(&mut bytes, self.needs_64());
        push_16(&mut bytes, if self.needs_64() { 20 } else { 0 });
        bytes.extend_from_slice(self.path.as_bytes());
        if self.needs_64() {
            push_16(&mut bytes, 1);
            push_16(&mut bytes, 16);
            push_64(&mut bytes, self.size);
            push_64(&mut bytes, self.size);
        }
        bytes
    }

    /// Version, flags, method, time, CRC, sizes, length of the name.
    fn push_common(&self, bytes: &mut Vec<u8>, zip64: bool) {
        push_16(bytes, if zip64 { 45 } else { 20 });
        push_16(bytes, 0x0800); // the name is UTF-8
        push_16(bytes, 0); // stored
        push_16(bytes, 0); // midnight
        push_16(bytes, 0x0021); // 1980-01-01
        push_32(bytes, self.crc);
        let size = self.size.min(LIMIT_32) as u32;
        push_32(bytes, size);
        push_32(bytes, size);
        push_16(bytes, self.path.len() as u16);
    }

    fn directory_entry(&self, offset: u64) -> Vec<u8> {
        let mut extra = Vec::new();
        if self.needs_64() {
            push_64(&mut extra, self.size);
            push_64(&mut extra, self.size);
        }
        if offset >= LIMIT_32 {
            push_64(&mut extra, offset);
        }
        let mut bytes = Vec::with_capacity(46 + self.path.len() + 4 + extra.len());
        push_32(&mut bytes, 0x0201_4b50);
        push_16(&mut bytes, 3 << 8 | 45); // made on Unix
        self.push_common(&mut bytes, !extra.is_empty());
        push_16(
            &mut bytes,
            if extra.is_empty() {
                0
            } else {
                extra.len() as u16 + 4
            },
        );
        push_16(&mut bytes, 0); // no comment
        push_16(&mut bytes, 0); // on this disk
        push_16(&mut bytes, 0); // no text
        push_32(&mut bytes, unix_mode(self.mode) << 16);
        push_32(&mut bytes, offset.min(LIMIT_32) as u32);
        bytes.extend_from_slice(self.path.as_bytes());
        if !extra.is_empty() {
            push_16(&mut bytes, 1);
            push_16(&mut bytes, extra.len() as u16);
            bytes.extend_from_slice(&extra);
        }
        bytes
    }
}

const fn unix_mode(mode: Mode) -> u32 {
    match mode {
        Mode::File => 0o100_644,
        Mode::Executable => 0o100_755,
        Mode::Symlink => 0o120_777,
    }
}

/// The directory with its end.
fn directory(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut offset = 0;
    for member in members {
        bytes.extend_from_slice(&member.directory_entry(offset));
        offset += member.whole_bytes();
    }
    let (length, count) = (bytes.len() as u64, members.len());
    if count >= LIMIT_16 || length >= LIMIT_32 || offset >= LIMIT_32 {
        push_32(&mut bytes, 0x0606_4b50);
        push_64(&mut bytes, END_64_BYTES - 12);
        push_16(&mut bytes, 3 << 8 | 45);
        push_16(&mut bytes, 45);
        push_32(&mut bytes, 0);
        push_32(&mut bytes, 0);
        push_64(&mut bytes, count as u64);
        push_64(&mut bytes, count as u64);
        push_64(&mut bytes, length);
        push_64(&mut bytes, offset);
        push_32(&mut bytes, 0x0706_4b50);
        push_32(&mut bytes, 0);
        push_64(&mut bytes, offset + length);
        push_32(&mut bytes, 1);
    }
    push_32(&mut bytes, 0x0605_4b50);
    push_32(&mut bytes, 0);
    push_16(&mut bytes, count.min(LIMIT_16) as u16);
    push_16(&mut bytes, count.min(LIMIT_16) as u16);
    push_32(&mut bytes, length.min(LIMIT_32) as u32);
    push_32(&mut bytes, offset.min(LIMIT_32) as u32);
    push_16(&mut bytes, 0);
    bytes
}

/// The files that the directory names, once it is known to be the only one for them.
fn members(archive: &mut (impl Read + Seek)) -> Result<Vec<Member>, ArchiveError> {
    const END: &str = "end of the archive";
    let size = archive.seek(SeekFrom::End(0))?;
    let (count, length, offset) = end(archive, size)?;
    if count > FILES_MAX as u64 {
        return Err(form(END, "an archive has at most 200,000 files"));
    }
    if length > DIRECTORY_BYTES_MAX || offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(form(
            END,
            "the directory lies in the archive and has at most 128 MiB",
        ));
    }
    archive.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; (size - offset).min(DIRECTORY_BYTES_MAX + 1024) as usize];
    exact(archive, &mut bytes, END)?;
    let mut rest = bytes.as_slice();
    let mut members: Vec<Member> = Vec::with_capacity(count as usize);
    let mut at = 0_u64;
    for _ in 0..count {
        let (member, length) = parse_entry(rest)?;
        let expected = member.directory_entry(at);
        if rest.get(..expected.len()) != Some(&expected) || length != expected.len() {
            let rule = "its entry is the one for its name, mode, size and place";
            return Err(form(&member.path, rule));
        }
        if members
            .last()
            .is_some_and(|before| before.path >= member.path)
        {
            return Err(form(&member.path, "names are sorted and stand once"));
        }
        at = at
            .checked_add(member.whole_bytes())
            .filter(|end| *end <= offset)
            .ok_or_else(|| form(&member.path, "a file ends before the directory"))?;
        rest = &rest[expected.len()..];
        members.push(member);
    }
    if at != offset || bytes != directory(&members) {
        return Err(form(
            END,
            "nothing lies between files and directory or behind it",
        ));
    }
    Ok(members)
}

/// Number of files, length of the directory and its place, as the end says.
fn end(archive: &mut (impl Read + Seek), size: u64) -> Result<(u64, u64, u64), ArchiveError> {
    const AT: &str = "end of the archive";
    const RULE: &str = "it is a ZIP archive as `ml export` writes it, and whole";
    if size < END_BYTES {
        return Err(form(AT, RULE));
    }
    let mut bytes = [0; (END_64_BYTES + LOCATOR_BYTES + END_BYTES) as usize];
    let wanted = size.min(bytes.len() as u64);
    archive.seek(SeekFrom::Start(size - wanted))?;
    let tail = &mut bytes[..wanted as usize];
    exact(archive, tail, AT)?;
    let (before, last) = tail.split_at(tail.len() - END_BYTES as usize);
    if number(last, 0, 4) != 0x0605_4b50 {
        return Err(form(AT, RULE));
    }
    let plain = (
        number(last, 10, 2),
        number(last, 12, 4),
        number(last, 16, 4),
    );
    let is_64 = plain.0 == LIMIT_16 as u64 || plain.1 == LIMIT_32 || plain.2 == LIMIT_32;
    if !is_64 {
        return Ok(plain);
    }
    if before.len() < (END_64_BYTES + LOCATOR_BYTES) as usize || number(before, 0, 4) != 0x0606_4b50
    {
        return Err(form(AT, RULE));
    }
    Ok((
        number(before, 32, 8),
        number(before, 40, 8),
        number(before, 48, 8),
    ))
}

/// One entry of the directory and its length. Only what cannot be known otherwise is
/// read; the caller holds the bytes against the entry that is written for it.
fn parse_entry(bytes: &[u8]) -> Result<(Member, usize), ArchiveError> {
    const AT: &str = "directory";
    let short = || form(AT, "it has an entry for each file");
    let fixed = bytes.get(..46).ok_or_else(short)?;
    let name = number(fixed, 28, 2) as usize;
    let extra = number(fixed, 30, 2) as usize;
    if name > PATH_BYTES_MAX {
        return Err(form(AT, "a name has at most 4096 bytes"));
    }
    let path = bytes.get(46..46 + name).ok_or_else(short)?;
    let extra_bytes = bytes.get(46 + name..46 + name + extra).ok_or_else(short)?;
    let path = std::str::from_utf8(path).map_err(|_| form(AT, "a name is UTF-8"))?;
    mlmesh_cas::check_path(path).map_err(|_| {
        let rule = "a name is relative, without `.`, `..`, `.git` and empty parts";
        form(path.escape_debug().to_string(), rule)
    })?;
    let mode = match number(fixed, 38, 4) >> 16 {
        0o100_644 => Mode::File,
        0o100_755 => Mode::Executable,
        0o120_777 => Mode::Symlink,
        _ => return Err(form(path, "its mode is 100644, 100755 or 120777")),
    };
    if number(fixed, 10, 2) != 0 {
        return Err(form(path, "nothing is compressed"));
    }
    let size = match number(fixed, 24, 4) {
        LIMIT_32 if extra_bytes.len() >= 12 => number(extra_bytes, 4, 8),
        size => size,
    };
    let member = Member {
        path: path.to_owned(),
        mode,
        size,
        crc: number(fixed, 16, 4) as u32,
    };
    Ok((member, 46 + name + extra))
}

fn exact(archive: &mut impl Read, bytes: &mut [u8], at: &str) -> Result<(), ArchiveError> {
    archive
        .read_exact(bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => form(at, "the archive is whole"),
            _ => ArchiveError::Io(error),
        })
}

/// A little-endian number of up to eight bytes, which the caller knows to be there.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = bytes[at..at + length].iter().rev();
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn push_16(bytes: &mut Vec<u8>, number: u16) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn push_32(bytes: &mut Vec<u8>, number: u32) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn push_64(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}
