//! `docs/FEATURES.md` claims only what a test or a command shows.
//!
//! A row is `| code | evidence | test or command |`; a feature with several proofs
//! separates them by `<br>`. A proof is `test: crate::path::name`, which must be a
//! test that the gate or a soak runs, or `cmd: …`.

use super::Finding;
use super::sources::Sources;

const DOCUMENT: &str = "docs/FEATURES.md";
const EVIDENCE: &[&str] = &["real", "stand-in", "schema-only"];

pub(crate) fn check(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in sources
        .text(DOCUMENT)
        .unwrap_or_default()
        .lines()
        .enumerate()
    {
        let place = format!("{DOCUMENT}:{}", number + 1);
        let cells: Vec<&str> = line
            .trim()
            .trim_matches('|')
            .split('|')
            .map(str::trim)
            .collect();
        let is_row = line.starts_with('|')
            && cells
                .first()
                .is_some_and(|cell| *cell != "code" && !cell.starts_with('-'));
        if !is_row {
            continue;
        }
        findings.extend(
            check_row(sources, &cells)
                .into_iter()
                .map(|text| Finding::error(place.clone(), text)),
        );
    }
    findings
}

fn check_row(sources: &Sources, cells: &[&str]) -> Vec<String> {
    let [code, evidence, proofs] = cells else {
        return vec![format!("a row has 3 cells, found {}", cells.len())];
    };
    let mut texts = Vec::new();
    if !code.split(' ').all(is_checklist_code) {
        texts.push(format!(
            "`{code}` is no code of the checklist\nhint: a letter F, H or M and two digits"
        ));
    }
    if !EVIDENCE.contains(evidence) {
        texts.push(format!(
            "evidence is {}, found `{evidence}`",
            EVIDENCE.join(", ")
        ));
    }
    for proof in proofs
        .split("<br>")
        .map(|proof| proof.trim().trim_matches('`'))
    {
        texts.extend(check_proof(sources, proof).err());
    }
    texts
}

fn is_checklist_code(code: &str) -> bool {
    matches!(code.as_bytes(), [b'F' | b'H' | b'M', tens, ones] if tens.is_ascii_digit() && ones.is_ascii_digit())
}

fn check_proof(sources: &Sources, proof: &str) -> Result<(), String> {
    if let Some(command) = proof.strip_prefix("cmd:") {
        return if command.trim().is_empty() {
            Err("`cmd:` names no command".to_owned())
        } else {
            Ok(())
        };
    }
    let Some(path) = proof.strip_prefix("test:").map(str::trim) else {
        return Err(format!(
            "a proof begins with `test:` or `cmd:`, found `{proof}`"
        ));
    };
    let (Some((package, _)), Some((_, name))) = (path.split_once("::"), path.rsplit_once("::"))
    else {
        return Err(format!("a test is `crate::path::name`, found `{path}`"));
    };
    let package = package.replace('_', "-");
    if !sources.has_package(&package) {
        return Err(format!(
            "test `{path}`: the workspace has no package `{package}`"
        ));
    }
    let declaration = format!("fn {name}(");
    let found = sources
        .of_package(&package)
        .find_map(|(_, text)| text.find(&declaration).map(|position| &text[..position]));
    match found {
        None => Err(format!(
            "test `{path}`: package `{package}` has no `fn {name}`"
        )),
        Some(before) if is_ignored(before) && !name.starts_with("soak_") => {
            Err(format!("test `{path}` is ignored; only a soak may be"))
        }
        Some(_) => Ok(()),
    }
}

/// Whether the attributes directly above a function switch it off.
fn is_ignored(before: &str) -> bool {
    before
        .lines()
        .rev()
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| line.trim_start().starts_with("#["))
        .any(|line| line.contains("ignore"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(row: &str) -> Sources {
        let document = format!("| code | evidence | test or command |\n|---|---|---|\n{row}\n");
        Sources::sample(&[
            (DOCUMENT, &document),
            (
                "mlmesh-cas/src/lib.rs",
                "#[test]\nfn same_tree_same_id() {}\n#[test]\n#[ignore]\nfn off() {}\n#[test]\n#[ignore = \"long\"]\nfn soak_long() {}",
            ),
        ])
    }

    #[test]
    fn rows_that_hold_are_accepted() {
        for row in [
            "| F11 | real | `test: mlmesh_cas::tests::same_tree_same_id` |",
            "| F11 | stand-in | cmd: `cargo xtask demo` |",
            "| F11 F10 | real | `test: mlmesh_cas::a::same_tree_same_id` <br> `cmd: x` |",
            "| F17 | real | `test: mlmesh_cas::it::soak_long` |",
        ] {
            assert_eq!(check(&sources(row)), [], "{row}");
        }
    }

    #[test]
    fn rows_that_do_not_hold_are_found() {
        for (row, text) in [
            (
                "| F11 | real | `test: mlmesh_cas::tests::absent` |",
                "has no `fn absent`",
            ),
            ("| F11 | real | `test: mlmesh_none::absent` |", "no package"),
            (
                "| F11 | real | `test: mlmesh_cas::tests::off` |",
                "is ignored",
            ),
            ("| F11 | real | somewhere |", "begins with"),
            ("| F11 | certain | `cmd: x` |", "evidence is"),
            ("| X1 | real | `cmd: x` |", "no code"),
            ("| F11 | real |", "3 cells"),
        ] {
            let found = check(&sources(row));
            assert_eq!(found.len(), 1, "{row}: {found:?}");
            assert!(found[0].text.contains(text), "{row}: {}", found[0]);
        }
    }
}
