//! When a locked package is wanted: an "or" of "and"s of marker texts.
//!
//! Markers are not evaluated here, only put together: the installer knows the
//! machine. An alternative that another one covers is dropped, so that cycles end.

use std::collections::BTreeSet;

/// Alternatives that one package's condition may have.
pub(super) const ALTERNATIVES_MAX: usize = 32;
/// Markers that one alternative may put together.
const CLAUSES_MAX: usize = 32;
/// Bytes of a condition's text.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Under which markers something is wanted. Empty means never.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Condition<'l> {
    alternatives: BTreeSet<BTreeSet<&'l str>>,
}

/// A condition above one of the limits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl<'l> Condition<'l> {
    /// Always.
    pub(super) fn always() -> Self {
        Self {
            alternatives: BTreeSet::from([BTreeSet::new()]),
        }
    }

    /// Under any of these markers; always when there is none.
    pub(super) fn any_of(markers: impl IntoIterator<Item = &'l str>) -> Result<Self, TooMany> {
        let mut any = Self::default();
        for marker in markers {
            any.insert(BTreeSet::from([marker]))?;
        }
        if any.alternatives.is_empty() {
            return Ok(Self::always());
        }
        Ok(any)
    }

    /// Both.
    pub(super) fn and(&self, other: &Self) -> Result<Self, TooMany> {
        let mut both = Self::default();
        for one in &self.alternatives {
            for two in &other.alternatives {
                both.insert(one.union(two).copied().collect())?;
            }
        }
        Ok(both)
    }

    /// Adds the alternatives of `other`; says whether that changed anything.
    pub(super) fn or(&mut self, other: &Self) -> Result<bool, TooMany> {
        let mut changed = false;
        for alternative in &other.alternatives {
            changed |= self.insert(alternative.clone())?;
        }
        Ok(changed)
    }

    fn insert(&mut self, new: BTreeSet<&'l str>) -> Result<bool, TooMany> {
        if self.alternatives.iter().any(|known| known.is_subset(&new)) {
            return Ok(false);
        }
        self.alternatives.retain(|known| !new.is_subset(known));
        let clauses = new.len();
        self.alternatives.insert(new);
        if clauses > CLAUSES_MAX || self.alternatives.len() > ALTERNATIVES_MAX {
            return Err(TooMany);
        }
        Ok(true)
    }

    /// As a requirement's marker; `None` for always.
    pub(super) fn marker(&self) -> Result<Option<String>, TooMany> {
        if self.alternatives.iter().any(BTreeSet::is_empty) {
            return Ok(None);
        }
        let bytes: usize = self
            .alternatives
            .iter()
            .flatten()
            .map(|clause| clause.len() + " and ()".len())
            .sum();
        if bytes > TEXT_BYTES_MAX {
            return Err(TooMany);
        }
        let alone = self.alternatives.len() == 1;
        let alternatives: Vec<String> = self
            .alternatives
            .iter()
            .map(|clauses| {
                let joined = clauses
                    .iter()
                    .map(|clause| format!("({clause})"))
                    .collect::<Vec<_>>()
                    .join(" and ");
                if alone || clauses.len() == 1 {
                    joined
                } else {
                    format!("({joined})")
                }
            })
            .collect();
        Ok(Some(alternatives.join(" or ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(condition: &Condition<'_>) -> String {
        condition.marker().unwrap().unwrap()
    }

    #[test]
    fn a_covered_alternative_is_dropped() {
        let [a, b, c] = ["a", "b", "c"].map(|marker| Condition::any_of([marker]).unwrap());
        let mut condition = a.and(&b).unwrap();
        assert_eq!(text(&condition), "(a) and (b)");
        assert_eq!(condition.or(&c), Ok(true));
        assert_eq!(text(&condition), "((a) and (b)) or (c)");
        assert_eq!(condition.or(&a), Ok(true));
        assert_eq!(text(&condition), "(a) or (c)");
        assert_eq!(condition.or(&a), Ok(false));
        assert_eq!(condition.or(&Condition::always()), Ok(true));
        assert_eq!(condition.marker(), Ok(None));
    }

    #[test]
    fn growth_is_bounded() {
        let names: Vec<String> = (0..100).map(|index| format!("m{index:03}")).collect();
        let many = names.iter().map(String::as_str);
        assert_eq!(Condition::any_of(many.clone()), Err(TooMany));
        let all = many.clone().try_fold(Condition::always(), |all, name| {
            all.and(&Condition::any_of([name])?)
        });
        assert_eq!(all, Err(TooMany));
        let long = "m".repeat(TEXT_BYTES_MAX);
        assert_eq!(
            Condition::any_of([long.as_str()]).unwrap().marker(),
            Err(TooMany)
        );
    }
}
