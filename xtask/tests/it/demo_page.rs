//! The demo's page is opened in a real browser, which reports what it drew.

use std::collections::BTreeMap;
use std::fs;

use mlmesh_testkit::browser;
use xtask::demo::page::{Again, Difference, HandedOn, Kill, Page, Reason, Run, html};

/// Counts what is visible: a line that has a length, a badge that has a size.
const LOOK: &str = "<script>addEventListener('load', () => {
  const seen = (query, test) => [...document.querySelectorAll(query)].filter(test).length;
  const box = node => { const size = node.getBoundingClientRect(); return size.width > 4 && size.height > 4; };
  document.title = 'seen ' + [
    seen('polyline', line => line.getTotalLength() > 50 && getComputedStyle(line).stroke !== 'none'),
    seen('.badge', box), seen('tbody tr', box), seen('figure svg', box),
    document.documentElement.scrollWidth <= innerWidth ? 'fits' : 'overflows',
    getComputedStyle(document.body).backgroundColor.replaceAll(' ', '')].join(' ');
});</script>";

#[test]
fn a_browser_draws_the_page() {
    let Some(browser) = browser::find() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    fs::write(
        &path,
        html(&sample()).replace("</body>", &format!("{LOOK}</body>")),
    )
    .unwrap();
    let title = |options: &[&str]| browser::draw(browser, &path, options).title().to_owned();
    assert_eq!(title(&[]), "seen 18 12 11 6 fits rgb(252,252,250)");
    assert_eq!(
        title(&[browser::DARK]),
        "seen 18 12 11 6 fits rgb(20,21,23)"
    );
}

/// Nine runs with curves that fall and rise as real ones do.
fn sample() -> Page {
    let mut runs = Vec::new();
    for (row, lr) in ["0.003", "0.03", "0.3"].into_iter().enumerate() {
        for (column, hidden) in ["0", "16", "64"].into_iter().enumerate() {
            let speed = 0.02 * (1.0 + row as f64 * 2.0 + column as f64);
            let loss: Vec<(f64, f64)> = (1..=200)
                .map(f64::from)
                .map(|step| (step, 2.3 * (-speed * step).exp() + 0.004))
                .collect();
            let accuracy: Vec<(f64, f64)> = loss
                .iter()
                .map(|(step, loss)| (*step, 0.97 - 0.25 * loss))
                .collect();
            runs.push(Run {
                id: format!("k7{row}m2{column}x9qd4a"),
                phase: "completed".to_owned(),
                params: [
                    ("lr".to_owned(), lr.to_owned()),
                    ("hidden".to_owned(), hidden.to_owned()),
                ]
                .into(),
                accuracy: accuracy.last().map(|point| point.1),
                loss: loss.last().map(|point| point.1),
                plan: format!("{row}{column}").repeat(32),
                trust: if row == 2 { "L2" } else { "L3" }.to_owned(),
                reasons: if row == 2 {
                    vec![Reason {
                        level: "L3".to_owned(),
                        message: "the recipe names no seed".to_owned(),
                    }]
                } else {
                    Vec::new()
                },
                curves: BTreeMap::from([
                    ("loss".to_owned(), loss),
                    ("accuracy".to_owned(), accuracy),
                ]),
            });
        }
    }
    Page {
        checksum: "sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
            .to_owned(),
        source: "data: a sample".to_owned(),
        kill: Kill {
            ended: 3,
            live: 2,
            queued: 4,
        },
        seconds: 21.4,
        runs,
        again: Again {
            best: "k72m22x9qd4a".to_owned(),
            worst: "k70m20x9qd4a".to_owned(),
            differences: [("lr", "0.003", "0.3"), ("hidden", "0", "64")]
                .map(|(name, worst, best)| Difference {
                    group: "params".to_owned(),
                    name: name.to_owned(),
                    worst: worst.to_owned(),
                    best: best.to_owned(),
                })
                .into(),
            run: "k79m29x9qd4a".to_owned(),
            how: "bit-identical".to_owned(),
            compared: 4,
        },
        handed_on: HandedOn {
            bytes: 51_234,
            files: 9,
            signer: format!("ed25519:{}", "0a".repeat(32)),
            run: "k71m28x9qd4a".to_owned(),
            how: "bit-identical".to_owned(),
            claim: format!("imported: L3 as signed by ed25519:{}", "0a".repeat(32)),
            defect: "file_changed run_manifest.json".to_owned(),
        },
    }
}
