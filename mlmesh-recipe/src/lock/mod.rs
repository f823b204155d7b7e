//! What a lock file pins.
