//! Runs as a daemon records them that did not run them: what the manifest says, for the
//! tenant and owner who imports it, and with no trust of our own.

use mlmesh_model::{
    Attempt, Digest, FencingToken, Labels, Owner, Placement, PlanDigest, Run, RunKind, Sequence,
    Tenant, Trust,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::bundle::ExportedRun;
use super::envelope::Fingerprint;
use super::verify::Parts;
use crate::defect::Defect;
use crate::json_schema::shown;

/// The records of what was verified: runs with their parent first, and attempts.
pub fn records(
    parts: &Parts,
    signer: Fingerprint,
    tenant: &Tenant,
    owner: &Owner,
) -> Result<(Vec<Run>, Vec<Attempt>), Box<Defect>> {
    let mut runs = Vec::with_capacity(parts.runs.len() + 1);
    let mut attempts = Vec::new();
    for exported in &parts.runs {
        let (mut run, tries) = record(exported, signer, tenant, owner)?;
        run.manifest_sha256 = Some(Digest::of(&exported.bytes));
        if parts.sweep.is_none() {
            run.kind = RunKind::Single;
        }
        runs.push(run);
        attempts.extend(tries);
    }
    if let (Some(sweep), Some(first)) = (&parts.sweep, runs.first()) {
        let children = u32::try_from(runs.len()).unwrap_or(u32::MAX);
        let parent = Run {
            id: sweep.run,
            kind: RunKind::Parent { children },
            plan: None,
            plan_sha256: sweep.plan_sha256,
            cause: None,
            message: String::new(),
            exit: None,
            attempts: 0,
            token: FencingToken(0),
            queued_at: sweep.queued_at,
            metrics: Default::default(),
            logged: None,
            outputs: None,
            manifest_sha256: None,
            isolation: None,
            placement: Placement {
                node: None,
                ..first.placement.clone()
            },
            trust: Some(Trust::imported(None, &signer.to_string(), None)),
            ..first.clone()
        };
        runs.insert(0, parent);
    }
    Ok((runs, attempts))
}

fn record(
    exported: &ExportedRun,
    signer: Fingerprint,
    tenant: &Tenant,
    owner: &Owner,
) -> Result<(Run, Vec<Attempt>), Box<Defect>> {
    let said = &exported.manifest;
    let attempts: Vec<Attempt> = part(said, "attempts")?;
    let kind = match (part(said, "sweep")?, part(said, "index")?) {
        (Some(parent), Some(index)) => RunKind::Child { parent, index },
        _ => RunKind::Single,
    };
    let claimed: Option<Trust> = part(said, "trust")?;
    let reproduced = exported.reproduction.as_ref();
    let reproduced = reproduced.map(|it| (it.claim.how(), it.signer.to_string()));
    let trust = Trust::imported(
        claimed.as_ref(),
        &signer.to_string(),
        reproduced
            .as_ref()
            .map(|(how, by)| (how.as_str(), by.as_str())),
    );
    let plan_sha256: PlanDigest = part(said, "plan_sha256")?;
    let run = Run {
        id: part(said, "run")?,
        seq: Sequence(0),
        tenant: tenant.clone(),
        owner: owner.clone(),
        name: part(said, "name")?,
        kind,
        commit: part(&said["snapshot"], "sha256")?,
        plan: part(said, "plan")?,
        plan_sha256,
        placement: part(said, "placement")?,
        git: part(said, "git")?,
        phase: part(said, "phase")?,
        cause: part(said, "cause")?,
        message: part(said, "message")?,
        exit: part(said, "exit")?,
        attempts: u32::try_from(attempts.len()).unwrap_or(u32::MAX),
        token: attempts.last().map_or(FencingToken(0), |last| last.token),
        queued_at: part(said, "queued_at")?,
        not_before: None,
        started_at: part(said, "started_at")?,
        ended_at: part(said, "ended_at")?,
        trust: Some(trust),
        metrics: part(said, "metrics")?,
        outputs: part(&said["outputs"], "listing")?,
        manifest_sha256: None,
        isolation: part(said, "isolation")?,
        pinned: false,
        labels: Labels {
            tags: part(said, "tags")?,
            note: part(said, "note")?,
        },
        logged: part(said, "logged")?,
    };
    let is_ours = run.phase.is_ended()
        && attempts.iter().all(|attempt| attempt.run == run.id)
        && run
            .plan
            .as_ref()
            .is_some_and(|plan| plan.digest().ok() == Some(plan_sha256));
    match is_ours {
        true => Ok((run, attempts)),
        false => Err(wrong(
            "run",
            said,
            "an ended run with its attempts and its plan",
        )),
    }
}

fn part<T: DeserializeOwned>(said: &Value, key: &str) -> Result<T, Box<Defect>> {
    T::deserialize(&said[key]).map_err(|error| wrong(key, &said[key], &error.to_string()))
}

fn wrong(key: &str, seen: &Value, allowed: &str) -> Box<Defect> {
    Box::new(Defect {
        code: "manifest_schema",
        at: format!("/{key}"),
        rule: "a manifest can be read as the record of a run".into(),
        seen: shown(seen),
        allowed: allowed.to_owned(),
    })
}
