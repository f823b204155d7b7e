//! What is wrong with a recipe, and where.

use std::fmt;

/// Errors shown for one file; the rest is only counted.
pub const ERRORS_MAX: usize = 20;

/// One error in a recipe.
///
/// `Display` gives two lines: `file:line:column: message` and the hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}\n  hint: {hint}")]
pub struct RecipeError {
    /// The file's name as the caller gave it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Stable snake_case word.
    pub code: &'static str,
    /// The wrong key or value in backticks and the rule; a lowercase fragment.
    pub message: String,
    /// What to write instead.
    pub hint: String,
}

/// Everything that is wrong with a recipe, by position; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeErrors {
    /// The first [`ERRORS_MAX`] errors.
    pub errors: Vec<RecipeError>,
    /// How many more there are, as far as they were counted.
    pub omitted: usize,
}

impl std::error::Error for RecipeErrors {}

impl fmt::Display for RecipeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            error.fmt(f)?;
        }
        if self.omitted > 0 {
            write!(f, "\n… and {} more", self.omitted)?;
        }
        Ok(())
    }
}

/// The codes of [`RecipeError`] and of this crate's refusals.
pub(crate) mod code {
    pub(crate) const SYNTAX: &str = "recipe_syntax";
    pub(crate) const TOO_LARGE: &str = "recipe_too_large";
    pub(crate) const DUPLICATE_KEY: &str = "recipe_duplicate_key";
    pub(crate) const UNKNOWN_KEY: &str = "recipe_unknown_key";
    pub(crate) const MISSING_KEY: &str = "recipe_missing_key";
    pub(crate) const KIND: &str = "recipe_kind_unavailable";
    pub(crate) const WRONG_TYPE: &str = "recipe_wrong_type";
    pub(crate) const VALUE: &str = "recipe_invalid_value";
    pub(crate) const REFERENCE: &str = "recipe_unknown_parameter";
    pub(crate) const CONFLICT: &str = "recipe_conflict";
    pub(crate) const OVERRIDE: &str = "override_refused";
    pub(crate) const SWEEP: &str = "sweep_refused";
    pub(crate) const LOCK: &str = "lock_refused";
    pub(crate) const ARGUMENT: &str = "argument_refused";
}

/// A place in the file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Position {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// What is wrong with a value, before its place is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// Collects errors while a file is read.
#[derive(Debug)]
pub(crate) struct Report {
    file: String,
    errors: Vec<RecipeError>,
}

/// Errors collected before reading stops: enough to sort, few enough to be quick.
const COLLECTED_MAX: usize = 1000;

impl Report {
    pub(crate) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            errors: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        at: Position,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.is_full() {
            return;
        }
        self.errors.push(RecipeError {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            code,
            message: message.into(),
            hint: hint.into(),
        });
    }

    /// Adds an error unless a better one is there already.
    pub(crate) fn add_if_empty(
        &mut self,
        at: Position,
        code: &'static str,
        message: &str,
        hint: &str,
    ) {
        if self.errors.is_empty() {
            self.add(at, code, message, hint);
        }
    }

    pub(crate) fn fault(&mut self, at: Position, code: &'static str, fault: Fault) {
        self.add(at, code, fault.message, fault.hint);
    }

    /// A list that names the same thing twice.
    pub(crate) fn repeated(&mut self, at: Position, key: &str, value: &str) {
        self.add(
            at,
            code::CONFLICT,
            format!("`{key}` lists `{}` twice", shown(value)),
            "remove one of the two",
        );
    }

    /// Takes in what is wrong with another file that this one names.
    pub(crate) fn absorb(&mut self, errors: RecipeErrors) {
        self.errors.extend(errors.errors);
    }

    /// Whether looking further would only cost time.
    pub(crate) fn is_full(&self) -> bool {
        self.errors.len() >= COLLECTED_MAX
    }

    pub(crate) fn count(&self) -> usize {
        self.errors.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The errors by position.
    pub(crate) fn into_errors(mut self) -> RecipeErrors {
        self.errors.sort_by_key(|error| (error.line, error.column));
        let omitted = self.errors.len().saturating_sub(ERRORS_MAX);
        self.errors.truncate(ERRORS_MAX);
        RecipeErrors {
            errors: self.errors,
            omitted,
        }
    }
}

/// A value as errors show it: short, on one line, without control characters.
pub(crate) fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 60;
    let mut out = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == CHARACTERS_MAX {
            out.push('…');
            break;
        }
        if character.is_control() || ('\u{200b}'..='\u{202f}').contains(&character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}
