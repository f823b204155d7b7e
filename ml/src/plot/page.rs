//! Figures as one file: a page that follows the reader's light or dark setting, or a
//! plain SVG for paper. The page works without its script, which hides a run when its
//! name is clicked.

use super::curves::Chart;
use super::parallel::Lines;
use super::{STYLE, WIDTH};
use crate::markup::escaped;

const PAGE_STYLE: &str = "\
:root{color-scheme:light dark;--back:#fff;--text:#1f2328;--dim:#59636e;--line:#d8dee4}\
@media(prefers-color-scheme:dark){:root{--back:#0d1117;--text:#e6edf3;--dim:#9198a1;\
--line:#2d333b}}\
body{background:var(--back);color:var(--text);font:16px/1.5 system-ui,sans-serif;\
max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.3rem}figure{margin:1.5rem 0}svg{width:100%;height:auto}\
figcaption,.note{color:var(--dim);font-size:.85rem}.key{cursor:pointer}.off{opacity:.12}";

const SCRIPT: &str = "document.querySelectorAll('svg').forEach(s=>s.querySelectorAll('.key').forEach(k=>\
k.addEventListener('click',()=>{k.classList.toggle('off');\
s.querySelectorAll('g.r'+k.dataset.run).forEach(c=>c.style.display=\
k.classList.contains('off')?'none':'')})))";

/// What a file shows.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) title: String,
    pub(crate) lines: Option<Lines>,
    pub(crate) charts: Vec<Chart>,
    /// What a reader should know.
    pub(crate) notes: Vec<String>,
}

impl Figures {
    /// Each figure with its height and its caption.
    fn all(&self) -> Vec<(String, f64, String)> {
        let lines = self.lines.iter().map(|lines| {
            let (svg, height) = lines.svg();
            let caption = "each line is a run; only what differs is shown".to_owned();
            (svg, height, caption)
        });
        let charts = self.charts.iter().map(|chart| {
            let (svg, height) = chart.svg();
            (svg, height, chart.left_out())
        });
        lines.chain(charts).collect()
    }
}

/// The page.
pub(crate) fn page(figures: &Figures) -> String {
    let title = escaped(&figures.title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>{title}</title>\n<style>{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    for (svg, height, caption) in figures.all() {
        page.push_str(&format!(
            "<figure><svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">{svg}</svg>\
             <figcaption>{}</figcaption></figure>\n",
            escaped(&caption)
        ));
    }
    for note in &figures.notes {
        page.push_str(&format!("<p class=\"note\">{}</p>\n", escaped(note)));
    }
    page.push_str(&format!("<script>{SCRIPT}</script>\n</body>\n</html>\n"));
    page
}

/// The figures one below the other, as one SVG on white.
pub(crate) fn sheet(figures: &Figures) -> String {
    let all = figures.all();
    let height: f64 = all.iter().map(|(_, height, _)| height + 26.0).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         width=\"{WIDTH}\" height=\"{height:.0}\"><style>{STYLE}</style>\
         <rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"#fff\"/>"
    );
    let mut y = 8.0;
    for (figure, height, caption) in all {
        svg.push_str(&format!(
            "<g transform=\"translate(0 {y:.0})\">{figure}\
             <text class=\"dim\" x=\"16\" y=\"{:.0}\">{}</text></g>",
            height + 6.0,
            escaped(&caption)
        ));
        y += height + 26.0;
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::axis::Kind;
    use crate::plot::{Axis, Curve};

    #[test]
    fn nothing_of_a_run_becomes_markup() {
        let bad = "<script>alert(1)</script>\"'&\u{1}";
        let figures = Figures {
            title: bad.into(),
            lines: Some(Lines {
                title: bad.into(),
                labels: vec![bad.into(), bad.into()],
                axes: vec![Axis {
                    name: bad.into(),
                    values: vec![Some(bad.into()), Some("b".into())],
                }],
                colour: 0,
            }),
            charts: vec![Chart {
                title: bad.into(),
                x: bad.into(),
                curves: vec![Curve {
                    label: bad.into(),
                    points: vec![(0.0, 1.0)],
                }],
                smooth: 0.0,
                x_kind: Kind::Linear,
                y_kind: Kind::Linear,
            }],
            notes: vec![bad.into()],
        };
        let (page, sheet) = (page(&figures), sheet(&figures));
        assert_eq!(page.matches("<script").count(), 1, "{page}");
        assert!(
            !sheet.contains("<script") && !sheet.contains('\u{1}'),
            "{sheet}"
        );
        assert!(page.contains("prefers-color-scheme:dark"));
        assert!(!page.contains("http"), "it needs nothing from elsewhere");
    }
}
