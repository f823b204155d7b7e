//! Answers to searches come in pages.

use std::cmp::Ordering;

use serde_json::Value;

use super::search::{Order, Row};
use super::wire::{Fault, wrong};

pub(super) fn bad_token() -> Fault {
    Fault::invalid("Invalid page token, decoded value=b''")
}

/// One page of what was found.
pub(super) struct Paged {
    pub(super) from: usize,
    pub(super) max: usize,
}

impl Paged {
    pub(super) fn of(
        asked: Option<i64>,
        usual: usize,
        most: usize,
        token: &str,
    ) -> Result<Self, Fault> {
        let max = match asked {
            None => usual,
            Some(count) if count < 1 => {
                return Err(Fault::invalid(format!(
                    "Invalid value {count} for parameter 'max_results' supplied. It must be a \
                     positive integer"
                )));
            }
            Some(count) if count as u64 > most as u64 => {
                return Err(wrong("max_results", &Value::from(count)));
            }
            Some(count) => count as usize,
        };
        let from = match token {
            "" => 0,
            token => token.parse().map_err(|_| bad_token())?,
        };
        Ok(Self { from, max })
    }

    /// The answer: the page's rows in order under their name, and where the next page
    /// begins.
    pub(super) fn answer<R: Row>(
        &self,
        name: &str,
        mut found: Vec<R>,
        orders: &[Order],
        json: impl Fn(&R) -> Value,
    ) -> Value {
        sort(&mut found, orders);
        let all = found.len();
        let shown = found.iter().skip(self.from).take(self.max);
        let rows: Vec<Value> = shown.map(json).collect();
        let mut answer = serde_json::Map::new();
        // An empty list of protobuf is one that is not there.
        if !rows.is_empty() {
            answer.insert(name.to_owned(), Value::Array(rows));
        }
        let next = self.from.saturating_add(self.max);
        if next < all {
            answer.insert("next_page_token".to_owned(), next.to_string().into());
        }
        Value::Object(answer)
    }
}

/// Puts rows in order, by the first that differs.
fn sort<R: Row>(rows: &mut [R], orders: &[Order]) {
    rows.sort_by(|one, other| {
        let mut compared = orders.iter().map(|order| order.compare(one, other));
        compared
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    });
}
