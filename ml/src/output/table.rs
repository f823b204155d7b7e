//! Aligned tables: rows of cells, each with a tone, columns as wide as needed.
//! On a terminal that is too narrow the last column is cut; elsewhere nothing is.

use super::Tone;

/// A table with a heading.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Cell {
    text: String,
    tone: Tone,
}

const GAP: &str = "  ";

impl Table {
    /// An empty table with these column names.
    pub(crate) fn new(heading: &[&str]) -> Self {
        Self {
            heading: heading.iter().map(|name| printable(name)).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Control characters in it are shown, not obeyed.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = (String, Tone)>) {
        let cells = cells.into_iter().map(|(text, tone)| Cell {
            text: printable(&text),
            tone,
        });
        self.rows.push(cells.collect());
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, at most `columns_max` wide if that is known.
    pub(crate) fn render(
        &self,
        columns_max: Option<usize>,
        paint: impl Fn(&str, Tone) -> String,
    ) -> String {
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                let widest = cells.map(|cell| cell.text.chars().count()).max();
                widest
                    .unwrap_or(0)
                    .max(self.heading[column].chars().count())
            })
            .collect();
        let mut text = String::new();
        let heading = self.heading.iter().map(|name| (name.as_str(), Tone::Bold));
        push_row(&mut text, heading, &widths, columns_max, &paint);
        for row in &self.rows {
            let cells = row.iter().map(|cell| (cell.text.as_str(), cell.tone));
            push_row(&mut text, cells, &widths, columns_max, &paint);
        }
        text
    }
}

fn push_row<'a>(
    out: &mut String,
    cells: impl Iterator<Item = (&'a str, Tone)>,
    widths: &[usize],
    columns_max: Option<usize>,
    paint: &impl Fn(&str, Tone) -> String,
) {
    let mut used = 0;
    let mut padding = 0;
    for (column, (text, tone)) in cells.enumerate() {
        let shown = match columns_max {
            Some(max) if column + 1 == widths.len() => cut(text, max.saturating_sub(used)),
            _ => text.to_owned(),
        };
        if !shown.is_empty() {
            out.extend(std::iter::repeat_n(' ', padding));
            padding = 0;
            out.push_str(&paint(&shown, tone));
        }
        let width = widths.get(column).copied().unwrap_or(0);
        padding += width.saturating_sub(shown.chars().count()) + GAP.len();
        used += width + GAP.len();
    }
    out.push('\n');
}

/// The text in at most `columns`, with an ellipsis where it was cut.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(columns.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Control characters as escapes, so that no name moves the cursor.
pub(crate) fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["RUN", "PHASE", "PARAMS"]);
        table.row([
            ("abcdefghijkl".into(), Tone::Plain),
            ("completed".into(), Tone::Good),
            ("lr=0.1 hidden=16".into(), Tone::Plain),
        ]);
        table.row([
            ("b".into(), Tone::Plain),
            ("failed".into(), Tone::Bad),
            (String::new(), Tone::Plain),
        ]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_spaces() {
        let text = table().render(None, |text, _| text.to_owned());
        assert_eq!(
            text,
            "RUN           PHASE      PARAMS\n\
             abcdefghijkl  completed  lr=0.1 hidden=16\n\
             b             failed\n"
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_the_last_column() {
        let text = table().render(Some(32), |text, _| text.to_owned());
        assert!(text.contains("completed  lr=0.1…\n"), "{text}");
    }

    #[test]
    fn colour_does_not_move_columns() {
        let plain = table().render(None, |text, _| text.to_owned());
        let painted = table().render(None, |text, tone| match tone {
            Tone::Plain => text.to_owned(),
            _ => format!("<{text}>"),
        });
        assert_eq!(painted.replace(['<', '>'], ""), plain);
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
    }
}
