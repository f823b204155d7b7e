//! The hash chain of audit rows: how a row is chained, and how a reader finds
//! that somebody edited, removed, reordered or cut off rows.
//!
//! Nothing here reads a store. A chain alone cannot tell that its end is
//! missing, nor that all of it was rewritten; for that the verifier is given a
//! head that was noted elsewhere (`logs/audit.log`, or the store's `head` row).

use mlmesh_model::{AuditNote, AuditRow, Digest, canonical_json};

/// The `previous` of the first row.
pub const AUDIT_START: Digest = Digest::from_bytes([0; 32]);

/// Number and hash of the last row of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    /// 0 for an empty chain.
    pub n: u64,
    /// [`AUDIT_START`] for an empty chain.
    pub hash: Digest,
}

/// What is wrong with a chain. The first defect is reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditDefect {
    /// A number was skipped.
    #[error("audit row {expected} is missing: row {found} follows row {}", expected - 1)]
    Missing {
        /// The number that should follow.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A number came again, or too late.
    #[error("audit row {found} is out of order: row {expected} was to follow")]
    OutOfOrder {
        /// The number that should follow.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A row's content does not give its hash.
    #[error("audit row {n} was edited: its content does not give its hash")]
    Edited {
        /// The row.
        n: u64,
    },
    /// A row does not name the hash of the row before.
    #[error("audit row {n} does not follow row {}: it names another hash", n - 1)]
    Unlinked {
        /// The row.
        n: u64,
    },
    /// Rows at the end are gone.
    #[error("audit rows {}..={expected} were cut off", found + 1)]
    Truncated {
        /// The last row noted elsewhere.
        expected: u64,
        /// The last row found.
        found: u64,
    },
    /// The chain is whole but not the one that was noted.
    #[error("audit row {n} is not the one that was noted: the chain was rewritten")]
    Rewritten {
        /// The noted row.
        n: u64,
    },
}

/// Checks rows from the first on. `expected_head` is a head noted elsewhere, at
/// the end or anywhere before it.
pub fn verify_chain(
    rows: impl Iterator<Item = AuditRow>,
    expected_head: Option<(u64, Digest)>,
) -> Result<AuditHead, AuditDefect> {
    let mut head = AuditHead {
        n: 0,
        hash: AUDIT_START,
    };
    for row in rows {
        let expected = head.n + 1;
        if row.n > expected {
            return Err(AuditDefect::Missing {
                expected,
                found: row.n,
            });
        }
        if row.n < expected {
            return Err(AuditDefect::OutOfOrder {
                expected,
                found: row.n,
            });
        }
        if row.previous != head.hash {
            return Err(AuditDefect::Unlinked { n: row.n });
        }
        if row_hash(row.n, &row.note, row.previous) != Some(row.hash) {
            return Err(AuditDefect::Edited { n: row.n });
        }
        if expected_head.is_some_and(|(n, hash)| n == row.n && hash != row.hash) {
            return Err(AuditDefect::Rewritten { n: row.n });
        }
        head = AuditHead {
            n: row.n,
            hash: row.hash,
        };
    }
    match expected_head {
        Some((n, _)) if n > head.n => Err(AuditDefect::Truncated {
            expected: n,
            found: head.n,
        }),
        _ => Ok(head),
    }
}

/// The row that follows `head`; `None` when the note has no canonical form (a
/// time beyond 2^53 microseconds).
pub(crate) fn chained(head: AuditHead, note: AuditNote) -> Option<AuditRow> {
    let n = head.n + 1;
    let hash = row_hash(n, &note, head.hash)?;
    Some(AuditRow {
        n,
        note,
        previous: head.hash,
        hash,
    })
}

fn row_hash(n: u64, note: &AuditNote, previous: Digest) -> Option<Digest> {
    let value = serde_json::json!({"n": n, "note": note, "previous": previous});
    canonical_json(&value).ok().map(|bytes| Digest::of(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::{Micros, Tenant};

    fn chain(length: u64) -> Vec<AuditRow> {
        let mut head = AuditHead {
            n: 0,
            hash: AUDIT_START,
        };
        (0..length)
            .map(|index| {
                let note = AuditNote {
                    time: Micros(1_700_000_000_000_000 + index as i64),
                    tenant: Tenant::default(),
                    owner: "ada".parse().unwrap(),
                    key: "owner.key".into(),
                    remote: "127.0.0.1:5000".into(),
                    action: "run.submit".into(),
                    subject: format!("run-{index}"),
                    details_sha256: (index % 2 == 0).then(|| Digest::of(b"body")),
                };
                let row = chained(head, note).unwrap();
                head = AuditHead {
                    n: row.n,
                    hash: row.hash,
                };
                row
            })
            .collect()
    }

    fn verify(rows: &[AuditRow], head: Option<(u64, Digest)>) -> Result<AuditHead, AuditDefect> {
        verify_chain(rows.iter().cloned(), head)
    }

    #[test]
    fn a_whole_chain_ends_at_its_head() {
        let rows = chain(5);
        let head = AuditHead {
            n: 5,
            hash: rows[4].hash,
        };
        assert_eq!(verify(&rows, None), Ok(head));
        assert_eq!(verify(&rows, Some((5, rows[4].hash))), Ok(head));
        assert_eq!(verify(&rows, Some((3, rows[2].hash))), Ok(head));
        assert_eq!(verify(&[], None).unwrap().n, 0);
    }

    #[test]
    fn the_hash_is_the_documented_one() {
        let row = &chain(1)[0];
        let text = format!(
            concat!(
                r#"{{"n":1,"note":{{"action":"run.submit","details_sha256":"{}","key":"owner.key","owner":"ada","#,
                r#""remote":"127.0.0.1:5000","subject":"run-0","tenant":"default","time":1700000000000000}},"previous":"{}"}}"#
            ),
            Digest::of(b"body"),
            "0".repeat(64),
        );
        assert_eq!(row.hash, Digest::of(text.as_bytes()));
    }

    #[test]
    fn an_edit_is_found_also_when_the_rows_own_hash_was_made_to_fit() {
        let mut rows = chain(4);
        rows[1].note.owner = "eve".parse().unwrap();
        assert_eq!(verify(&rows, None), Err(AuditDefect::Edited { n: 2 }));
        rows[1].hash = row_hash(2, &rows[1].note, rows[1].previous).unwrap();
        assert_eq!(verify(&rows, None), Err(AuditDefect::Unlinked { n: 3 }));
    }

    #[test]
    fn a_removal_is_found_also_when_the_numbers_were_closed_up() {
        let mut rows = chain(4);
        rows.remove(1);
        let missing = AuditDefect::Missing {
            expected: 2,
            found: 3,
        };
        assert_eq!(verify(&rows, None), Err(missing));
        rows[1].n = 2;
        assert_eq!(verify(&rows, None), Err(AuditDefect::Unlinked { n: 2 }));
    }

    #[test]
    fn reordered_and_repeated_rows_are_found() {
        let mut rows = chain(4);
        rows.swap(1, 2);
        assert!(matches!(
            verify(&rows, None),
            Err(AuditDefect::Missing { .. })
        ));
        let mut rows = chain(3);
        rows.push(rows[1].clone());
        let defect = AuditDefect::OutOfOrder {
            expected: 4,
            found: 2,
        };
        assert_eq!(verify(&rows, None), Err(defect));
    }

    #[test]
    fn truncation_and_rewriting_need_the_head_noted_elsewhere() {
        let rows = chain(4);
        let noted = Some((4, rows[3].hash));
        assert!(verify(&rows[..3], None).is_ok());
        let cut = AuditDefect::Truncated {
            expected: 4,
            found: 3,
        };
        assert_eq!(verify(&rows[..3], noted), Err(cut));
        let mut head = AuditHead {
            n: 0,
            hash: AUDIT_START,
        };
        let forged: Vec<AuditRow> = rows
            .iter()
            .map(|row| {
                let mut note = row.note.clone();
                note.owner = "eve".parse().unwrap();
                let row = chained(head, note).unwrap();
                head = AuditHead {
                    n: row.n,
                    hash: row.hash,
                };
                row
            })
            .collect();
        assert!(verify(&forged, None).is_ok());
        assert_eq!(verify(&forged, noted), Err(AuditDefect::Rewritten { n: 4 }));
    }
}
