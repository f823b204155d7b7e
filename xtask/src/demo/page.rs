//! What the demo found, as a table for the terminal and as one HTML page that needs
//! nothing else: no network, no script, no font file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Arguments;

use super::chart::{self, Line, Range, Scale};

/// Step and value of each point.
pub type Curve = Vec<(f64, f64)>;

/// Everything that the page says.
#[derive(Debug, Clone)]
pub struct Page {
    pub checksum: String,
    pub source: String,
    pub kill: Kill,
    pub seconds: f64,
    pub runs: Vec<Run>,
    pub again: Again,
    pub handed_on: HandedOn,
}

/// The best run as one file, and what a second daemon made of it.
#[derive(Debug, Clone)]
pub struct HandedOn {
    pub bytes: u64,
    pub files: u64,
    pub signer: String,
    /// The run there, and what was met.
    pub run: String,
    pub how: String,
    /// What stands beside the imported run's level.
    pub claim: String,
    /// What verification says when one byte is changed.
    pub defect: String,
}

/// The best run beside the worst, and once more.
#[derive(Debug, Clone)]
pub struct Again {
    pub best: String,
    pub worst: String,
    pub differences: Vec<Difference>,
    /// The repetition, and what was met.
    pub run: String,
    pub how: String,
    /// Outputs and metrics that were compared.
    pub compared: u64,
}

/// What is not the same in the best run and the worst.
#[derive(Debug, Clone)]
pub struct Difference {
    pub group: String,
    pub name: String,
    pub worst: String,
    pub best: String,
}

/// Where the runs stood when the daemon was killed.
#[derive(Debug, Clone)]
pub struct Kill {
    pub ended: u64,
    pub live: u64,
    pub queued: u64,
}

/// One run of the sweep.
#[derive(Debug, Clone)]
pub struct Run {
    pub id: String,
    pub phase: String,
    pub params: BTreeMap<String, String>,
    pub accuracy: Option<f64>,
    pub loss: Option<f64>,
    pub plan: String,
    pub trust: String,
    pub reasons: Vec<Reason>,
    pub curves: BTreeMap<String, Curve>,
}

/// Why a run did not reach a level of trust.
#[derive(Debug, Clone)]
pub struct Reason {
    pub level: String,
    pub message: String,
}

impl Run {
    fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// Why the level is what it is, in words.
    fn reasons_text(&self) -> String {
        if self.reasons.is_empty() {
            return match self.trust.as_str() {
                "L3" => "every condition holds".to_owned(),
                "L4" => "reproduced".to_owned(),
                _ => "–".to_owned(),
            };
        }
        self.reasons
            .iter()
            .map(|reason| format!("not {}: {}", reason.level, reason.message))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// The runs, best first, in aligned columns.
pub fn table(page: &Page) -> String {
    let mut text = format!(
        "\n{:<14} {:>7} {:>7} {:>9} {:>9}  {:<10} {:<6} reasons\n",
        "run", "lr", "hidden", "accuracy", "loss", "phase", "trust"
    );
    for run in by_accuracy(page) {
        put(
            &mut text,
            format_args!(
                "{:<14} {:>7} {:>7} {:>9} {:>9}  {:<10} {:<6} {}\n",
                run.id,
                run.param("lr"),
                run.param("hidden"),
                number(run.accuracy),
                number(run.loss),
                run.phase,
                run.trust,
                run.reasons_text()
            ),
        );
    }
    text
}

/// The whole page.
pub fn html(page: &Page) -> String {
    let completed = page
        .runs
        .iter()
        .filter(|run| run.phase == "completed")
        .count();
    let best = by_accuracy(page).first().and_then(|run| run.accuracy);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Digits: a sweep of {} runs</title>\n<style>{STYLE}</style></head>\n<body><main>\n",
        page.runs.len()
    );
    put(
        &mut html,
        format_args!(
            "<header><p class=\"brand\">mlmesh</p><h1>Digits: a sweep of {} runs</h1>\
             <p class=\"lead\">Softmax regression and a small network on 1,797 handwritten digits, each at three learning rates. \
             The daemon was killed with SIGKILL while {} runs had ended, {} were under way and {} were queued. \
             It was started again and went on; no run was lost.</p></header>\n",
            page.runs.len(),
            page.kill.ended,
            page.kill.live,
            page.kill.queued
        ),
    );
    html.push_str("<section class=\"figures\" aria-label=\"Key figures\">");
    figure(
        &mut html,
        &format!("{completed} of {}", page.runs.len()),
        "runs completed",
    );
    figure(
        &mut html,
        &best.map_or("–".to_owned(), |best| format!("{:.1} %", best * 100.0)),
        "best accuracy on the test",
    );
    figure(&mut html, &trust_range(page), "trust level");
    figure(
        &mut html,
        &format!("{:.0} s", page.seconds),
        "from an empty directory",
    );
    html.push_str("</section>\n");
    charts(&mut html, page);
    sweep_table(&mut html, page);
    again(&mut html, &page.again);
    handed_on(&mut html, &page.again.best, &page.handed_on);
    put(
        &mut html,
        format_args!(
            "<footer><p>{}.</p><p>Dataset checksum <code>{}</code></p><p>mlmesh {}</p></footer>\n</main></body></html>\n",
            escape(&sentence(&page.source)),
            escape(&page.checksum),
            env!("CARGO_PKG_VERSION")
        ),
    );
    html
}

fn charts(html: &mut String, page: &Page) {
    let rates = distinct(page, "lr");
    html.push_str("<section><h2>Learning curves</h2><p class=\"legend\">Learning rate ");
    for (index, rate) in rates.iter().enumerate() {
        put(
            html,
            format_args!(
                "<span><i class=\"key s{index}\"></i>{}</span> ",
                escape(rate)
            ),
        );
    }
    html.push_str("</p>\n");
    for (metric, title, scale) in [
        ("accuracy", "Accuracy on the test", Scale::Linear),
        ("loss", "Training loss, logarithmic", Scale::Logarithmic),
    ] {
        let values = page
            .runs
            .iter()
            .filter_map(|run| run.curves.get(metric))
            .flatten()
            .map(|point| point.1);
        let range = Range::around(values, scale);
        put(
            html,
            format_args!("<h3>{title}, by epoch</h3><div class=\"charts\">"),
        );
        for hidden in distinct(page, "hidden") {
            let name = if hidden == "0" {
                "Softmax regression".to_owned()
            } else {
                format!("Hidden layer of {hidden}")
            };
            let lines: Vec<Line<'_>> = rates
                .iter()
                .enumerate()
                .filter_map(|(index, rate)| {
                    let run = page
                        .runs
                        .iter()
                        .find(|run| run.param("lr") == *rate && run.param("hidden") == hidden)?;
                    let points = run.curves.get(metric)?;
                    let tooltip = format!(
                        "{}: learning rate {}, {metric} {}",
                        escape(&run.id),
                        escape(rate),
                        last(points)
                    );
                    Some(Line {
                        class: format!("curve s{index}"),
                        name: tooltip,
                        points,
                    })
                })
                .collect();
            let svg = chart::svg(&escape(&format!("{title}, {name}")), &lines, range);
            put(
                html,
                format_args!(
                    "<figure><figcaption>{}</figcaption>{svg}</figure>",
                    escape(&name)
                ),
            );
        }
        html.push_str("</div>\n");
    }
    html.push_str("</section>\n");
}

fn sweep_table(html: &mut String, page: &Page) {
    html.push_str(
        "<section><h2>The sweep</h2><div class=\"scroll\"><table><thead><tr><th>Run</th><th class=\"n\">Learning rate</th>\
         <th class=\"n\">Hidden</th><th class=\"n\">Accuracy</th><th class=\"n\">Loss</th><th>Phase</th><th>Trust</th><th>Plan</th></tr></thead><tbody>\n",
    );
    for run in by_accuracy(page) {
        put(
            html,
            format_args!(
                "<tr><td><code>{}</code></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td>{}</td><td><span class=\"badge {}\">{}</span> <span class=\"why\">{}</span></td><td><code title=\"{}\">{}</code></td></tr>\n",
                escape(&run.id),
                escape(run.param("lr")),
                escape(run.param("hidden")),
                number(run.accuracy),
                number(run.loss),
                escape(&run.phase),
                if run.trust.as_str() >= "L3" {
                    "good"
                } else {
                    "weak"
                },
                escape(&run.trust),
                escape(&run.reasons_text()),
                escape(&run.plan),
                escape(run.plan.get(..12).unwrap_or(&run.plan))
            ),
        );
    }
    html.push_str(
        "</tbody></table></div><p class=\"note\">L3: the code, the environment and the data are pinned by digest, the seed is recorded, \
         and the job saw nothing else. The level is computed from what was verified.</p></section>\n",
    );
}

/// What differs between best and worst, the repetition, and what to type for both.
fn again(html: &mut String, again: &Again) {
    let [best, worst] = [&again.best, &again.worst].map(|id| escape(id));
    put(
        html,
        format_args!(
            "<section><h2>What makes the best run the best</h2><p class=\"note\"><code>ml compare {worst} {best}</code></p>\
             <div class=\"scroll\"><table><thead><tr><th>Group</th><th>What</th><th class=\"n\">Worst</th><th class=\"n\">Best</th></tr></thead><tbody>\n"
        ),
    );
    for it in &again.differences {
        put(
            html,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
                escape(&it.group),
                escape(&it.name),
                escape(&it.worst),
                escape(&it.best)
            ),
        );
    }
    put(
        html,
        format_args!(
            "</tbody></table></div></section>\n<section><h2>The best run, once more</h2>\
             <p class=\"note\"><code>ml reproduce {best}</code></p>\
             <p><span class=\"badge good\">L4 reproduced ({})</span> Run <code>{}</code> executed the same plan anew: \
             {} outputs and metrics were compared and none differs.</p></section>\n",
            escape(&again.how),
            escape(&again.run),
            again.compared
        ),
    );
}

/// What somebody else can check, and what to type for it.
fn handed_on(html: &mut String, best: &str, it: &HandedOn) {
    let best = escape(best);
    put(
        html,
        format_args!(
            "<section><h2>In other hands</h2>\
             <p class=\"note\"><code>ml export {best} -o best.zip</code></p>\
             <p>Code, manifest, outputs and the statement behind L4 in one file: {} files, {} kB, signed by \
             <code>{}</code>. It verifies offline.</p>\n",
            it.files,
            it.bytes.div_ceil(1000),
            escape(&it.signer)
        ),
    );
    put(
        html,
        format_args!(
            "<p class=\"note\"><code>ml import best.zip</code><br><code>ml reproduce {best}</code></p>\
             <p><span class=\"badge weak\">L0</span> In a second data directory the run is what its signer says: \
             <q>{}</q>.</p><p><span class=\"badge good\">{}</span> Run <code>{}</code> executed it anew \
             there.</p>\n",
            escape(&it.claim),
            escape(&it.how),
            escape(&it.run)
        ),
    );
    put(
        html,
        format_args!(
            "<p class=\"note\"><code>ml export --verify changed.zip</code></p>\
             <p>One byte of the file was changed: <code>{}</code>.</p></section>\n",
            escape(&it.defect)
        ),
    );
}

fn figure(html: &mut String, value: &str, name: &str) {
    put(
        html,
        format_args!(
            "<div><strong>{}</strong><span>{}</span></div>",
            escape(value),
            escape(name)
        ),
    );
}

fn by_accuracy(page: &Page) -> Vec<&Run> {
    let mut runs: Vec<&Run> = page.runs.iter().collect();
    runs.sort_by(|left, right| {
        right
            .accuracy
            .unwrap_or(-1.0)
            .total_cmp(&left.accuracy.unwrap_or(-1.0))
    });
    runs
}

/// The values of a parameter, smallest first.
fn distinct<'a>(page: &'a Page, name: &str) -> Vec<&'a str> {
    let values: BTreeSet<&str> = page.runs.iter().map(|run| run.param(name)).collect();
    let mut values: Vec<&str> = values.into_iter().collect();
    let size = |value: &str| value.parse::<f64>().unwrap_or(f64::INFINITY);
    values.sort_by(|left, right| size(left).total_cmp(&size(right)));
    values
}

fn trust_range(page: &Page) -> String {
    let levels: BTreeSet<&str> = page.runs.iter().map(|run| run.trust.as_str()).collect();
    match (levels.first(), levels.last()) {
        (Some(low), Some(high)) if low == high => format!("all {low}"),
        (Some(low), Some(high)) => format!("{low} to {high}"),
        _ => "–".to_owned(),
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.4}"))
}

fn last(points: &[(f64, f64)]) -> String {
    number(points.last().map(|point| point.1))
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn put(text: &mut String, part: Arguments<'_>) {
    text.push_str(&part.to_string());
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let run = |lr: &str, accuracy, trust: &str| Run {
            id: format!("id-{lr}"),
            phase: "completed".to_owned(),
            params: [
                ("lr".to_owned(), lr.to_owned()),
                ("hidden".to_owned(), "16".to_owned()),
            ]
            .into(),
            accuracy: Some(accuracy),
            loss: None,
            plan: "ab".repeat(32),
            trust: trust.to_owned(),
            reasons: vec![Reason {
                level: "L3".to_owned(),
                message: "a <b> & \"c\"".to_owned(),
            }],
            curves: [("accuracy".to_owned(), vec![(1.0, 0.5), (2.0, accuracy)])].into(),
        };
        Page {
            checksum: "sha256:00".to_owned(),
            source: "data: x".to_owned(),
            kill: Kill {
                ended: 3,
                live: 2,
                queued: 4,
            },
            seconds: 12.3,
            runs: vec![run("0.1", 0.7, "L2"), run("0.02", 0.9, "L3")],
            again: Again {
                best: "id-0.02".to_owned(),
                worst: "id-0.1".to_owned(),
                differences: vec![Difference {
                    group: "params".to_owned(),
                    name: "lr<b>".to_owned(),
                    worst: "0.1".to_owned(),
                    best: "0.02".to_owned(),
                }],
                run: "id-again".to_owned(),
                how: "bit-identical".to_owned(),
                compared: 4,
            },
            handed_on: HandedOn {
                bytes: 1,
                files: 9,
                signer: "ed25519:<0>".to_owned(),
                run: "id-3".to_owned(),
                how: "bit-identical".to_owned(),
                claim: "imported: <L3>".to_owned(),
                defect: "file_changed <x>".to_owned(),
            },
        }
    }

    #[test]
    fn the_table_has_the_best_run_first_and_says_why() {
        let text = table(&page());
        let lines: Vec<&str> = text.trim().lines().collect();
        assert!(
            lines[1].starts_with("id-0.02") && lines[2].starts_with("id-0.1 "),
            "{text}"
        );
        assert!(lines[1].ends_with("not L3: a <b> & \"c\""));
    }

    #[test]
    fn text_is_escaped_and_nothing_is_fetched() {
        let html = html(&page());
        assert!(html.contains("a &lt;b&gt; &amp; &quot;c&quot;") && !html.contains("<b>"));
        for word in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!html.contains(word), "{word}");
        }
        assert!(html.contains("L2 to L3"));
        assert!(html.contains("lr&lt;b&gt;") && html.contains("ml reproduce id-0.02"));
    }

    #[test]
    fn parameters_are_in_order_of_size() {
        assert_eq!(distinct(&page(), "lr"), ["0.02", "0.1"]);
    }
}
