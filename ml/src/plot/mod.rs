//! Figures of runs as SVG, without a library and without the network: curves of metrics
//! and parallel coordinates of a sweep. What comes from runs is escaped where it is
//! written; colours are classes, so that a page can follow the reader's setting.

pub(crate) mod axis;
mod curves;
mod page;
mod parallel;

pub(crate) use curves::{Chart, Curve};
pub(crate) use page::{Figures, page, sheet};
pub(crate) use parallel::{Axis, Lines};

/// Width of a figure.
const WIDTH: f64 = 720.0;

/// Colours that most people tell apart, also in grey (Okabe and Ito, 2008).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b",
];
/// Runs beyond the colours are told apart by their dashes.
const DASHES: [&str; 3] = ["none", "7 3", "2 3"];

/// The style of a figure on paper; a page gives the three colours other values.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:var(--text,#1f2328)}\
.title{font-size:14px;font-weight:600}.grid{stroke:var(--line,#d8dee4);stroke-width:1}\
.axis{stroke:var(--dim,#59636e);stroke-width:1}.dim{fill:var(--dim,#59636e)}\
path{fill:none;stroke-linejoin:round}.raw{opacity:.35;stroke-width:1}\
.curve{stroke-width:1.8}\
.halo{paint-order:stroke;stroke:var(--back,#fff);stroke-width:5px}";

/// At most so many characters of a text.
fn clipped(text: &str, most: usize) -> String {
    match text.chars().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// About how wide a text is drawn at the size of labels.
fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * 6.8
}
