//! After the repetition: the best run as one file, in the hands of somebody else. It is
//! verified, imported into a daemon that has seen nothing of it, and executed anew there;
//! then one byte of the file is changed, and verification has to name where.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::page::HandedOn;
use crate::mesh::Mesh;
use crate::step;
use crate::workspace::Workspace;

/// What is changed: a byte in the middle of this file of the export.
const CHANGED: &str = "run_manifest.json";

/// Hands the run to a second data directory.
pub(super) fn run(workspace: &Workspace, mesh: &Mesh, best: &str, data: &Path) -> Result<HandedOn> {
    let file = mesh.folder().join("best.zip");
    let path = text_of(&file)?;
    let made = mesh.json(&["export", best, "-o", path])?;
    let signer = text(&made["signer"]);
    let words = ["export", "--verify", path, "--signer", &signer];
    let verified = mesh.json(&words)?;
    let reproduction = &verified["runs"][0]["reproduction"];
    ensure!(
        verified["holds"] == true && reproduction["signer"] == signer.as_str(),
        "the export does not hold, or does not say who signed its L4: {verified:#}"
    );
    let bytes = fs::metadata(&file)?.len();
    step::say(format_args!(
        "exported: {best}, {} files, {bytes} bytes, signed by {signer}",
        made["files"]
    ));

    let other = Mesh::new(workspace, "debug")?;
    other.up()?;
    let imported = other.json(&["import", path, "--signer", &signer])?;
    ensure!(
        imported["fresh"] == true,
        "the run was not new to the second daemon: {imported:#}"
    );
    super::register(&other, data)?;
    let found = other.json(&["reproduce", best])?;
    ensure!(
        found["judgement"]["verdict"] == "bit_identical" && found["trust"]["level"] == "L0",
        "the second daemon gave another result, or believed what it had not seen: {found:#}"
    );
    let claim = text(&found["trust"]["reasons"][0]["message"]);
    let again = text(&found["run"]);
    step::say(format_args!(
        "reproduced by a second daemon: {again}, {}; there the run is L0, {claim}",
        text(&found["judgement"]["how"])
    ));
    other.down()?;

    Ok(HandedOn {
        bytes,
        files: made["files"].as_u64().unwrap_or(0),
        signer,
        run: again,
        how: text(&found["judgement"]["how"]),
        claim,
        defect: changed(mesh, &file)?,
    })
}

/// Changes one byte and gives what verification says.
fn changed(mesh: &Mesh, file: &Path) -> Result<String> {
    let mut bytes = fs::read(file)?;
    // The name in the file's own header, and its content behind it.
    let header_bytes = 30 + CHANGED.len();
    let is_header =
        |part: &[u8]| part.starts_with(b"PK\x03\x04") && part.ends_with(CHANGED.as_bytes());
    let at = bytes.windows(header_bytes).position(is_header);
    let at = at.context("the export has no manifest")? + header_bytes + 100;
    bytes[at] ^= 1;
    let other = file.with_file_name("changed.zip");
    fs::write(&other, bytes)?;
    let mut verify = mesh.ml(&["export", "--verify", text_of(&other)?, "--json"]);
    let output = verify.output().context("start `ml export --verify`")?;
    let found: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let defects = found["defects"].as_array().map_or(0, Vec::len);
    let first = &found["defects"][0];
    ensure!(
        output.status.code() == Some(1) && defects == 1 && first["at"] == CHANGED,
        "a changed byte was not found where it is: {found:#}"
    );
    let defect = format!("{} {}", text(&first["code"]), text(&first["at"]));
    step::say(format_args!("one byte changed: {defect}"));
    Ok(defect)
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str()
        .context("the temporary directory's path is not UTF-8")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
