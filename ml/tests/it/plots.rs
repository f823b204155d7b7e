//! `ml plot` in a real browser: what a reader sees of one run and of a sweep.

use std::fs;
use std::path::PathBuf;

use mlmesh_testkit::browser;
use serde_json::Value;

use crate::mesh::Mesh;

/// Losses that fall as real ones do, over five decades, with a time that is no multiple of
/// the step.
const JOB: &str = r#"
import json, math, sys
rate = float(sys.argv[1])
with open("metrics.jsonl", "w") as f:
    for step in range(200):
        loss = 2.3 * math.exp(-rate * step) * (1.2 + math.sin(step * 2.1) * 0.2) + 1e-5
        f.write(json.dumps({"name": "loss", "value": loss, "step": step, "time": 1000 + step ** 1.5}) + "\n")
        f.write(json.dumps({"name": "accuracy", "value": 0.97 - 0.25 * loss, "step": step, "time": 1000 + step ** 1.5}) + "\n")
open("out.txt", "w").write("x")
"#;

/// Answers in the title: what each figure has, and how it stands out from the page.
const LOOK: &str = r#"<script>addEventListener('load', () => {
  const numbers = text => text.match(/[\d.]+/g).slice(0, 3).map(Number);
  const light = rgb => { const [r, g, b] = rgb.map(part => { part /= 255;
    return part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b + .05; };
  const back = light(numbers(getComputedStyle(document.body).backgroundColor));
  const contrast = colour => { const it = light(numbers(colour));
    return Math.max(it, back) / Math.min(it, back); };
  const least = (list, property) => Math.min(99, ...list.map(
    node => contrast(getComputedStyle(node)[property])));
  const all = (root, query) => [...root.querySelectorAll(query)];
  const seen = node => { const box = node.getBoundingClientRect();
    return box.width > 4 && box.height > 4; };
  const inside = (svg, node) => { const a = svg.getBoundingClientRect(), b = node.getBoundingClientRect();
    return b.left >= a.left - 1 && b.right <= a.right + 1 && b.top >= a.top - 1 && b.bottom <= a.bottom + 1; };
  const figures = all(document, 'figure svg').map(svg => {
    const lines = all(svg, 'g[class^=r] > .curve, :scope > path[class^=r]');
    const answer = {
      drawn: lines.filter(line => line.getTotalLength() > 50 && seen(line)).length,
      first: lines.length ? lines[0].getAttribute('d') : '',
      names: all(svg, '.key text').map(text => text.textContent),
      titles: lines.map(line => line.textContent),
      outside: all(svg, 'text').filter(text => !inside(svg, text)).map(text => text.textContent),
      text: least(all(svg, 'text'), 'fill'), line: least(lines, 'stroke'),
    };
    const key = svg.querySelector('.key');
    if (key) { key.dispatchEvent(new MouseEvent('click', {bubbles: true}));
      answer.hidden = lines.filter(line => !seen(line)).length; }
    return answer;
  });
  document.title = JSON.stringify({figures, fits: document.documentElement.scrollWidth <= innerWidth});
});</script>"#;

struct Plots {
    mesh: Mesh,
    sweep: String,
    /// Points of the sweep, in order.
    runs: Vec<String>,
}

impl Plots {
    fn new() -> Self {
        let mesh = Mesh::up();
        mesh.place.write("curve.py", JOB);
        let values: Vec<String> = (1..=20)
            .map(|n| format!("{:.3}", f64::from(n) / 200.0))
            .collect();
        let recipe = format!(
            "experiment:\n  name: curves\n  command: [python3, curve.py, '${{rate}}']\n  seed: none\n  \
             resources: {{cpus: 0.1}}\n  params: {{rate: 0}}\n  sweep: {{rate: [{}]}}\n",
            values.join(", ")
        );
        mesh.place.write("curves.yaml", recipe);
        let queued = mesh.ml(&["queue", "--wait", "-q", "curves.yaml"]).exits(0);
        let sweep = queued.stdout.trim().to_owned();
        let points = mesh.ml(&["list", "--parent", &sweep, "--limit", "50", "--json"]);
        let points = points.exits(0).json();
        let mut points: Vec<&Value> = points["runs"].as_array().unwrap().iter().collect();
        points.sort_by_key(|run| run["index"].as_u64());
        let runs = points
            .iter()
            .map(|run| run["id"].as_str().unwrap().to_owned());
        let runs = runs.collect();
        Self { mesh, sweep, runs }
    }

    fn plot(&self, run: &str, name: &str, more: &[&str]) -> PathBuf {
        let file = self.mesh.place.path(name);
        let words = ["plot", run, "-o", file.to_str().unwrap()];
        self.mesh.ml(&[&words[..], more].concat()).exits(0);
        file
    }
}

/// What the browser says of a page; the figures of others stand below its own.
fn looked_at(browser: &str, page: &PathBuf, others: &[PathBuf], options: &[&str]) -> Value {
    let figures = |page: &PathBuf| {
        let text = fs::read_to_string(page).unwrap();
        let (from, to) = (
            text.find("<figure>").unwrap(),
            text.rfind("</figure>").unwrap(),
        );
        text[from..to + "</figure>".len()].to_owned()
    };
    let more: String = others.iter().map(figures).collect();
    let text = fs::read_to_string(page).unwrap();
    let asking = page.with_extension("asked.html");
    let script = text.rfind("<script>").unwrap();
    let text = format!("{}{more}{}", &text[..script], &text[script..]);
    fs::write(&asking, text.replace("</body>", &format!("{LOOK}</body>"))).unwrap();
    let drawn = browser::draw(browser, &asking, options);
    assert_eq!(drawn.console, [""; 0]);
    let title = drawn
        .title()
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&title).unwrap_or_else(|error| panic!("{error}: {title}"))
}

#[track_caller]
fn legible(seen: &Value) {
    assert_eq!(seen["fits"], true);
    for figure in seen["figures"].as_array().unwrap() {
        assert_eq!(figure["outside"], serde_json::json!([]), "beyond the sheet");
        let contrast = |what: &str| figure[what].as_f64().unwrap();
        assert!(contrast("text") >= 4.5, "text: {}", contrast("text"));
        assert!(contrast("line") >= 2.0, "lines: {}", contrast("line"));
    }
}

#[test]
fn a_browser_draws_one_run_and_a_sweep_in_light_and_dark() {
    let Some(browser) = browser::find() else {
        return;
    };
    let plots = Plots::new();

    // One run, and the same with each of the controls.
    let one = &plots.runs[2];
    let loss = ["--metric", "loss"];
    let page = plots.plot(one, "one.html", &loss);
    let changed: Vec<PathBuf> = [
        ("smooth.html", &["--smooth", "0.9"][..]),
        ("log-y.html", &["--log-y"]),
        ("log-x.html", &["--log-x"]),
        ("time.html", &["--x", "time"]),
    ]
    .iter()
    .map(|(name, more)| plots.plot(one, name, &[&loss, *more].concat()))
    .collect();
    let seen = looked_at(browser, &page, &changed, &[]);
    legible(&seen);
    let figures = seen["figures"].as_array().unwrap();
    let mut paths: Vec<&str> = figures
        .iter()
        .map(|it| it["first"].as_str().unwrap())
        .collect();
    for figure in figures {
        assert_eq!(figure["drawn"], 1, "{figure:#}");
        assert_eq!(figure["hidden"], 1, "a click on its name hides it");
        assert!(
            figure["names"][0].as_str().unwrap().contains(one.as_str()),
            "{figure:#}"
        );
    }
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), 5, "each control draws another curve");

    // The sweep: its parameters, then twenty curves of each metric.
    let page = plots.plot(&plots.sweep, "sweep.html", &[]);
    for options in [&[][..], &[browser::DARK]] {
        let seen = looked_at(browser, &page, &[], options);
        legible(&seen);
        let figures = seen["figures"].as_array().unwrap();
        assert_eq!(figures.len(), 3, "{seen:#}");
        for figure in figures {
            assert_eq!(figure["drawn"], 20, "{figure:#}");
        }
        for (place, run) in (1..=20).zip(&plots.runs) {
            let rate = format!("rate={:.3}", f64::from(place) / 200.0);
            let has = |list: &Value| {
                let mut names = list.as_array().unwrap().iter();
                names.any(|name| name.as_str().unwrap().ends_with(&rate))
            };
            assert!(
                has(&figures[1]["names"]) && has(&figures[2]["names"]),
                "{run} {rate}"
            );
            assert!(has(&figures[0]["titles"]), "{run} {rate} {figures:#?}");
        }
    }

    // A drawing stands alone.
    let sheet = plots.plot(&plots.sweep, "sweep.svg", &[]);
    let drawn = browser::draw(browser, &sheet, &[]);
    assert_eq!(drawn.console, [""; 0]);
    assert!(
        !drawn.document.contains("parsererror"),
        "{}",
        drawn.document
    );
    assert_eq!(drawn.document.matches("class=\"key\"").count(), 40);
}
