//! Server-sent events, found in bytes as they come.
//!
//! The rules are those of the HTML standard ("Interpreting an event stream"): lines
//! end with CR, LF or both, `data` lines of one event are joined, a blank line ends
//! it, lines that begin with a colon are comments. An event may be cut anywhere; of
//! one that lies whole in what was read nothing is copied. Fields other than `data`
//! are of no use here.

/// Bytes of one event; what is longer is cut there, and its end is still found.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Finds events.
#[derive(Debug, Default)]
pub struct Scanner {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Joined `data` lines of an event that has not ended.
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: an LF that follows belongs to it.
    cr_seen: bool,
    /// Something has been read: a byte order mark is one only at the beginning.
    begun: bool,
}

impl Scanner {
    /// Takes the next bytes and gives `event` the data of each event that ends there.
    pub fn feed(&mut self, bytes: &[u8], event: &mut impl FnMut(&[u8])) {
        let mut rest = bytes;
        // The data line of an event in `bytes` itself, while it is the only one.
        let mut whole: Option<&[u8]> = None;
        if self.cr_seen && !rest.is_empty() {
            self.cr_seen = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            let line = &rest[..end];
            let is_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if is_cr {
                match rest.first() {
                    Some(b'\n') => rest = &rest[1..],
                    Some(_) => {}
                    None => self.cr_seen = true,
                }
            }
            if self.line.is_empty() {
                let line = self.without_mark(line);
                whole = self.line_ended(line, whole, event);
            } else {
                self.keep(line);
                let kept = std::mem::take(&mut self.line);
                let line = self.without_mark(&kept);
                if let Some(data) = whole.take() {
                    self.join(data);
                }
                let data = self.line_ended(line, None, event);
                if let Some(data) = data {
                    self.join(data);
                }
                self.line = kept;
                self.line.clear();
            }
        }
        if let Some(data) = whole {
            self.join(data);
        }
        self.keep(rest);
    }

    /// The stream has ended. What the standard would drop, an event without its blank
    /// line, counts, since some engines end like that.
    pub fn finish(&mut self, event: &mut impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            self.feed(b"\n", event);
        }
        self.cr_seen = false;
        self.feed(b"\n", event);
        *self = Self::default();
    }

    /// Ready for the next stream; keeps its memory.
    pub(crate) fn reset(&mut self) {
        self.line.clear();
        self.data.clear();
        self.has_data = false;
        self.cr_seen = false;
        self.begun = false;
    }

    /// One whole line. Returns the data that now wait for the end of their event and
    /// were not copied.
    fn line_ended<'a>(
        &mut self,
        line: &'a [u8],
        whole: Option<&'a [u8]>,
        event: &mut impl FnMut(&[u8]),
    ) -> Option<&'a [u8]> {
        if line.is_empty() {
            if let Some(data) = whole {
                event(data);
            } else if self.has_data {
                event(&self.data);
            }
            self.data.clear();
            self.has_data = false;
            return None;
        }
        let Some(data) = data_of(line) else {
            return whole;
        };
        if whole.is_none() && !self.has_data {
            return Some(data);
        }
        if let Some(first) = whole {
            self.join(first);
        }
        self.join(data);
        None
    }

    fn join(&mut self, data: &[u8]) {
        if self.has_data && self.data.len() < EVENT_BYTES_MAX {
            self.data.push(b'\n');
        }
        let room = EVENT_BYTES_MAX.saturating_sub(self.data.len());
        self.data.extend_from_slice(&data[..data.len().min(room)]);
        self.has_data = true;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = EVENT_BYTES_MAX.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn without_mark<'a>(&mut self, line: &'a [u8]) -> &'a [u8] {
        if self.begun {
            return line;
        }
        self.begun = true;
        line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line)
    }
}

/// The value of a `data` line.
fn data_of(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data")?;
    match rest.split_first() {
        None => Some(rest),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}
