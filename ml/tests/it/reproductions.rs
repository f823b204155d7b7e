//! The signed statement behind L4: where it comes from, with which file it travels, what
//! an importer sees of it, and what the daemon refuses to keep.

use std::fs;
use std::process::Command;

use mlmesh_api::{AttestDto, Client, ClientError};
use mlmesh_model::{Digest, ReproductionVerdict, RunId};
use mlmesh_proof::export::{ReproductionClaim, SignedReproduction, SigningKey};
use serde_json::Value;

use crate::mesh::Mesh;
use crate::program::answer;

mod kills;

const JOB: &str = "\
import json, os
value = 0.9 + int.from_bytes(os.urandom(6), 'big') / 2**48 * 1e-3
open('made.txt', 'w').write('the result')
open('metrics.jsonl', 'w').write(json.dumps({'name': 'accuracy', 'value': value}))
";

/// A run that is L3, and a repetition of it that was judged and not signed.
pub(crate) fn reproduced(mesh: &Mesh) -> (String, String) {
    let version = "import sys; print('%d.%d' % sys.version_info[:2])";
    let version = answer(Command::new("python3").args(["-c", version])).exits(0);
    mesh.place.write("requirements.lock", "");
    mesh.place.write("near.py", JOB);
    mesh.place.write(
        "near.yaml",
        format!(
            "experiment:\n  name: near\n  command: [python3, near.py]\n  seed: 7\n  \
             environment: {{python: \"{}\", lock: requirements.lock}}\n  \
             outputs: [made.txt]\n  tolerance: {{accuracy: {{abs: 0.01}}}}\n",
            version.stdout.trim()
        ),
    );
    let queue = ["queue", "-q", "--repro-policy", "strict", "near.yaml"];
    let run = mesh.ml(&queue).exits(0).stdout.trim().to_owned();
    mesh.wait_for_phase(&run, "completed");
    let again = mesh.ml(&["reproduce", &run, "--no-wait", "--json"]);
    let again = again.exits(0).json()["id"].as_str().unwrap().to_owned();
    mesh.wait("L4", || trust(mesh, &run)["level"] == "L4");
    (run, again)
}

fn trust(mesh: &Mesh, run: &str) -> Value {
    mesh.ml(&["info", run, "--json"]).exits(0).json()["trust"].clone()
}

fn signer(mesh: &Mesh) -> String {
    mesh.ml(&["key", "show"]).exits(0).stdout.trim().to_owned()
}

#[test]
fn the_statement_behind_l4_travels_with_the_export() {
    let mesh = Mesh::up();
    let (run, again) = reproduced(&mesh);
    let shown = mesh.ml(&["info", &run]).exits(0).stdout;
    assert!(
        shown.contains("L4 reproduced (accuracy within abs 0.01)"),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("by run {again}, not signed yet")),
        "{shown}"
    );
    // The export makes the signature that is missing.
    mesh.ml(&["export", &run, "-o", "x.zip"]).exits(0);
    let by = signer(&mesh);
    assert_eq!(trust(&mesh, &run)["reproduced"]["signer"], by.as_str());
    let found = mesh.ml(&["export", "--verify", "x.zip", "--json"]);
    let found = found.exits(0).json();
    let said = &found["runs"][0]["reproduction"];
    assert_eq!(said["signer"], by.as_str(), "{found:#}");
    assert_eq!(said["by"], again.as_str());
    assert_eq!(said["verdict"], "within_tolerance");
    assert_eq!(said["tolerance"]["accuracy"]["abs"], "0.01");
    assert_eq!(said["outputs_compared"].as_u64(), Some(1));
    assert_eq!(found["runs"][0]["trust"], "L3", "a manifest is never L4");
    let shown = mesh.ml(&["export", "--verify", "x.zip"]).exits(0).stdout;
    assert!(shown.contains("L4 (accuracy within abs 0.01)"), "{shown}");

    // A key that is lost takes nothing away: what was signed stays and verifies.
    let key = mesh.place.path("home/config/signing.key");
    fs::remove_file(key).unwrap();
    mesh.ml(&["export", &run, "-o", "y.zip"]).exits(0);
    assert_ne!(signer(&mesh), by);
    let later = mesh.ml(&["export", "--verify", "y.zip", "--json"]);
    let later = later.exits(0).json();
    assert_eq!(later["runs"][0]["reproduction"]["signer"], by.as_str());
    assert_eq!(later["signer"], signer(&mesh).as_str());
    mesh.ml(&["export", "--verify", "x.zip", "--signer", &by])
        .exits(0);

    // Elsewhere it is what somebody says.
    let other = Mesh::up();
    let file = mesh.place.project().join("y.zip");
    fs::copy(file, other.place.project().join("y.zip")).unwrap();
    other.ml(&["import", "y.zip"]).exits(0);
    let here = trust(&other, &run);
    assert_eq!(here["level"], "L0");
    let claimed = format!(
        "imported: L3 as signed by {}; reproduced (accuracy within abs 0.01) as signed by {by}",
        signer(&mesh)
    );
    assert_eq!(here["reasons"][0]["message"], claimed);
    let kept = other.place.data().join("data/experiments").join(&run);
    let kept = fs::read(kept.join("reproduction.dsse.json")).unwrap();
    assert_eq!(
        SignedReproduction::open(&kept)
            .unwrap()
            .claim
            .repetition
            .to_string(),
        again
    );
    let again = other.ml(&["import", "y.zip", "--json"]).exits(0).json();
    assert_eq!(again["fresh"], false);
}

#[test]
fn the_daemon_keeps_one_statement_and_only_of_what_it_judged() {
    let mesh = Mesh::up();
    let (run, again) = reproduced(&mesh);
    let client = Client::open(&mesh.place.data()).unwrap();
    let (original, repetition): (RunId, RunId) = (run.parse().unwrap(), again.parse().unwrap());
    let found = client.reproductions(&again).unwrap();
    let judged = found.reproductions[0].judgement.clone().unwrap();
    let holds = ReproductionClaim {
        original,
        original_manifest_sha256: judged.original_manifest_sha256.unwrap(),
        repetition,
        manifest_sha256: judged.manifest_sha256.unwrap(),
        plan_sha256: judged.plan_sha256,
        verdict: ReproductionVerdict::WithinTolerance,
        tolerance: [(
            "accuracy".to_owned(),
            mlmesh_model::Tolerance {
                abs: Some("0.01".into()),
                rel: None,
            },
        )]
        .into(),
        outputs_compared: judged.outputs_compared,
        metrics_compared: judged.metrics_compared,
        judged_at: judged.time.0,
    };
    let key = SigningKey::generate().unwrap();
    let attest = |run: RunId, envelope: Vec<u8>| {
        let envelope = String::from_utf8(envelope).unwrap();
        client.attest(run, &AttestDto { envelope })
    };
    let refused = |run: RunId, envelope: Vec<u8>| match attest(run, envelope) {
        Err(ClientError::Api { body, .. }) => (body.code, body.message),
        other => panic!("{other:?}"),
    };
    type Change = fn(&mut ReproductionClaim);
    let changes: [(&str, Change); 6] = [
        ("other manifests", |it| {
            it.manifest_sha256 = Digest::of(b"x")
        }),
        ("other manifests", |it| {
            it.original_manifest_sha256 = Digest::of(b"x")
        }),
        ("other runs", |it| {
            it.original = "aaaaaaaaaaaa".parse().unwrap()
        }),
        ("something else", |it| {
            it.verdict = ReproductionVerdict::BitIdentical
        }),
        ("something else", |it| {
            let bounds = it.tolerance.get_mut("accuracy").unwrap();
            bounds.abs = Some("0.001".into());
        }),
        ("within a tolerance", |it| {
            it.verdict = ReproductionVerdict::Differs
        }),
    ];
    for (why, change) in changes {
        let mut claim = holds.clone();
        change(&mut claim);
        let (code, message) = refused(repetition, claim.sign(&key, "now"));
        assert_eq!(code, "bad_statement", "{message}");
        assert!(message.contains(why), "{why}: {message}");
    }
    let borrowed = String::from_utf8(holds.sign(&key, "now")).unwrap();
    let other = SigningKey::generate().unwrap();
    let (mine, theirs) = (
        key.fingerprint().to_string(),
        other.fingerprint().to_string(),
    );
    let (code, message) = refused(repetition, borrowed.replace(&mine, &theirs).into_bytes());
    assert_eq!(code, "bad_statement");
    assert!(
        message.contains("the signature is not that of"),
        "{message}"
    );
    // It is kept with the repetition, not with the original.
    assert_eq!(refused(original, holds.sign(&key, "now")).0, "not_found");
    assert_eq!(trust(&mesh, &run)["reproduced"]["signer"], Value::Null);

    let kept = attest(repetition, holds.sign(&key, "now")).unwrap();
    assert_eq!(kept.statement.unwrap().signer, mine);
    let second = attest(repetition, holds.sign(&other, "later")).unwrap();
    assert_eq!(
        second.statement.unwrap().signer,
        mine,
        "the first one stays"
    );
    assert_eq!(trust(&mesh, &run)["reproduced"]["signer"], mine.as_str());
    mesh.ml(&["audit", "verify"]).exits(0);
    let rows = mesh.ml(&["audit", "list", "--json"]).exits(0).stdout;
    assert_eq!(rows.matches("run.attest").count(), 1, "{rows}");
}
