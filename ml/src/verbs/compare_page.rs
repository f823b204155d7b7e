//! The page of `ml compare --html`: one file without script, light and dark by what the
//! reader's system says. Everything that comes from runs is escaped.

use mlmesh_proof::FileDifference;
use serde_json::Value;

use crate::markup::escaped;
use crate::verbs::compare::{Comparison, names, shown};

const STYLE: &str = "\
:root{color-scheme:light dark;--back:#fff;--text:#1f2328;--dim:#59636e;--line:#d1d9e0;\
--old:#ffebe9;--new:#dafbe1}\
@media(prefers-color-scheme:dark){:root{--back:#0d1117;--text:#e6edf3;--dim:#9198a1;\
--line:#3d444d;--old:#4a1f22;--new:#12361f}}\
body{background:var(--back);color:var(--text);font:16px/1.5 system-ui,sans-serif;\
max-width:72rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}\
table{border-collapse:collapse;width:100%}\
td,th{border-bottom:1px solid var(--line);padding:.35rem .6rem;text-align:left;\
vertical-align:top;overflow-wrap:anywhere}\
th,.dim{color:var(--dim);font-weight:normal}\
.old{background:var(--old)}.new{background:var(--new)}\
pre{border:1px solid var(--line);overflow-x:auto;padding:.5rem 0;font:13px/1.45 monospace}\
pre span{display:block;padding:0 .75rem;min-height:1.45em}";

/// The whole page.
pub(crate) fn page(comparison: &Comparison) -> String {
    let title = format!("{} and {}", side(&comparison.a), side(&comparison.b));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>{0}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        escaped(&title)
    );
    if comparison.differences.is_empty() {
        page.push_str("<p>Nothing differs.</p>\n");
    } else {
        page.push_str(&format!(
            "<table>\n<tr><th>group</th><th>what</th><th>{}</th><th>{}</th></tr>\n",
            escaped(&id(&comparison.a)),
            escaped(&id(&comparison.b))
        ));
        for it in &comparison.differences {
            page.push_str(&format!(
                "<tr><td class=\"dim\">{}</td><td>{}</td><td class=\"old\">{}</td>\
                 <td class=\"new\">{}</td></tr>\n",
                it.group.as_str(),
                escaped(&it.name),
                escaped(&shown(&it.a)),
                escaped(&shown(&it.b))
            ));
        }
        page.push_str("</table>\n");
    }
    if let Some(note) = &comparison.code_note {
        let note = escaped(note);
        page.push_str(&format!(
            "<p class=\"dim\">The content of the code is not compared: {note}</p>\n"
        ));
    }
    for file in &comparison.files {
        page.push_str(&file_section(file));
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn file_section(file: &FileDifference) -> String {
    let (old, new) = names(file);
    let (old, new) = (escaped(&old), escaped(&new));
    let mut text = format!("<h2>{old} → {new}</h2>\n");
    if let Some(note) = &file.note {
        text.push_str(&format!("<p class=\"dim\">{}</p>\n", escaped(note)));
    }
    let Some(diff) = file.diff.as_deref().filter(|diff| !diff.is_empty()) else {
        return text;
    };
    text.push_str("<pre>");
    for line in diff.lines() {
        let class = match line.as_bytes().first() {
            Some(b'-') => "old",
            Some(b'+') => "new",
            Some(b'@') => "dim",
            _ => "",
        };
        text.push_str(&format!("<span class=\"{class}\">{}</span>", escaped(line)));
    }
    text.push_str("</pre>\n");
    text
}

fn side(manifest: &Value) -> String {
    let name = manifest["name"].as_str().unwrap_or_default();
    format!("{name} {}", id(manifest)).trim().to_owned()
}

fn id(manifest: &Value) -> String {
    manifest["run"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_proof::FileChange;
    use serde_json::json;

    #[test]
    fn nothing_of_a_run_becomes_markup() {
        let bad = "<script>alert(1)</script>\"&";
        let a = json!({"run": bad, "name": bad, "note": bad});
        let comparison = Comparison {
            differences: mlmesh_proof::compare(&a, &json!({"name": "x"})),
            files: vec![FileDifference {
                path: bad.into(),
                change: FileChange::Changed,
                diff: Some(format!("@@ -1,1 +1,1 @@\n-{bad}\n+b\n")),
                note: Some(bad.into()),
            }],
            code_note: Some(bad.into()),
            a,
            b: json!({"name": "x"}),
        };
        let page = page(&comparison);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.matches("&lt;script&gt;").count() >= 6, "{page}");
        assert!(page.contains("prefers-color-scheme:dark"));
        assert!(!page.contains("http"), "it needs nothing from elsewhere");
    }
}
