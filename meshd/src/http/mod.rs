//! The front door: TLS only, bounded connections, one router.
//!
//! ```text
//!   TCP ─► first byte ─┬─ TLS ─► handshake ─► HTTP/1.1 ─► front ─► router ─► handlers
//!                      └─ plain HTTP ─► 400 and close     (id, key, log, count)
//! ```

pub(crate) mod body;
pub(crate) mod front;
mod linger;
pub(crate) mod listener;
pub(crate) mod query;
