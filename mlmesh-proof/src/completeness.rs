//! What a manifest must say in which phase.
//!
//! The schema says what may stand where; here stands what must not be null. A run that
//! waits has its plan, one that runs its start and its machine, one that ended how.

use serde_json::Value;

use crate::defect::Defect;
use crate::json_schema::shown;
use crate::manifest::MANIFEST_SCHEMA;

const CODE: &str = "manifest_incomplete";

/// Checks that a manifest says what its phase requires.
pub fn completeness(manifest: &Value) -> Vec<Defect> {
    let mut defects = Vec::new();
    if manifest.get("schema") != Some(&Value::from(MANIFEST_SCHEMA)) {
        defects.push(Defect {
            code: "manifest_schema",
            at: "/schema".into(),
            rule: "a manifest names its shape".into(),
            seen: manifest.get("schema").map_or("nothing".into(), shown),
            allowed: MANIFEST_SCHEMA.into(),
        });
    }
    let phase = manifest.get("phase").and_then(Value::as_str).unwrap_or("");
    let command_ran = command_ran(manifest, phase);
    for (pointer, when) in REQUIRED {
        let is_required = match when {
            When::Always => true,
            When::In(phases) => phases.contains(&phase),
            When::CommandRan => command_ran,
        };
        if is_required && is_absent(manifest, pointer) {
            defects.push(missing(pointer, phase));
        }
    }
    for (index, dataset) in list(manifest, "/datasets") {
        for key in ["name", "checksum"] {
            if dataset.get(key).is_none_or(Value::is_null) {
                defects.push(missing(&format!("/datasets/{index}/{key}"), phase));
            }
        }
        if command_ran && dataset.get("verified") != Some(&Value::Bool(true)) {
            defects.push(Defect {
                code: "dataset_unverified",
                at: format!("/datasets/{index}/verified"),
                rule: "a command starts after the digest of each dataset was verified".into(),
                seen: dataset.get("verified").map_or("nothing".into(), shown),
                allowed: "true".into(),
            });
        }
    }
    let has_environment = manifest
        .pointer("/plan/deps")
        .is_some_and(|deps| !deps.is_null());
    if command_ran && has_environment {
        for pointer in ENVIRONMENT {
            if is_absent(manifest, pointer) {
                defects.push(missing(pointer, phase));
            }
        }
    }
    defects.extend(exit_code(manifest, phase));
    defects
}

/// When something must be there.
enum When {
    Always,
    /// In these phases.
    In(&'static [&'static str]),
    /// Once the command was executed.
    CommandRan,
}

const ENDED: When = When::In(&["completed", "failed", "cancelled", "interrupted"]);

const REQUIRED: &[(&str, When)] = &[
    ("/run", When::Always),
    ("/name", When::Always),
    ("/owner", When::Always),
    ("/phase", When::Always),
    ("/plan", When::Always),
    ("/plan_sha256", When::Always),
    ("/placement", When::Always),
    ("/snapshot/id", When::Always),
    ("/snapshot/sha256", When::Always),
    ("/datasets", When::Always),
    ("/attempts", When::Always),
    ("/queued_at", When::Always),
    (
        "/started_at",
        When::In(&["running", "finishing", "completed"]),
    ),
    (
        "/attempts/0",
        When::In(&["starting", "running", "finishing", "completed"]),
    ),
    ("/host", When::CommandRan),
    ("/isolation", When::CommandRan),
    ("/ended_at", ENDED),
    ("/trust/level", ENDED),
    ("/daemon_version", ENDED),
    ("/cause", When::In(&["failed", "cancelled", "interrupted"])),
];

/// What a run with an environment says of it once its command was executed.
const ENVIRONMENT: [&str; 4] = [
    "/environment/deps_sha256",
    "/environment/interpreter/sha256",
    "/environment/packages",
    "/environment/packages_sha256",
];

/// Causes of failed runs whose command was never executed.
const BEFORE_COMMAND: [&str; 5] = [
    "dataset_changed",
    "prepare_failed",
    "environment_failed",
    "isolation_failed",
    "command_not_found",
];

/// Whether the command was executed and its end seen: of one that was lost nobody
/// knows more than its record.
fn command_ran(manifest: &Value, phase: &str) -> bool {
    let cause = manifest.get("cause").and_then(Value::as_str).unwrap_or("");
    match phase {
        "completed" => true,
        "failed" => !BEFORE_COMMAND.contains(&cause),
        _ => false,
    }
}

/// A run whose command was executed has its exit code, and a completed one has 0.
/// A failed run that never came to its command says so by its cause.
fn exit_code(manifest: &Value, phase: &str) -> Option<Defect> {
    let code = manifest.get("exit_code").and_then(Value::as_i64);
    let ran = command_ran(manifest, phase);
    match phase {
        "completed" if code.is_some_and(|code| code != 0) => Some(Defect {
            code: "exit_code",
            at: "/exit_code".into(),
            rule: "a completed run has exit code 0".into(),
            seen: code.map_or("nothing".into(), |code| code.to_string()),
            allowed: "0".into(),
        }),
        "completed" | "failed" if ran && code.is_none() => Some(missing("/exit_code", phase)),
        "failed" if ran && is_absent(manifest, "/started_at") => {
            Some(missing("/started_at", phase))
        }
        _ => None,
    }
}

fn is_absent(manifest: &Value, pointer: &str) -> bool {
    manifest.pointer(pointer).is_none_or(Value::is_null)
}

fn missing(pointer: &str, phase: &str) -> Defect {
    Defect {
        code: CODE,
        at: pointer.to_owned(),
        rule: format!("a manifest of phase `{phase}` has it"),
        seen: "nothing".into(),
        allowed: "a value".into(),
    }
}

/// The items of a list, numbered; none where there is no list.
pub(crate) fn list<'a>(
    manifest: &'a Value,
    pointer: &str,
) -> impl Iterator<Item = (usize, &'a Value)> {
    let items = manifest.pointer(pointer).and_then(Value::as_array);
    items.into_iter().flatten().enumerate()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn complete(phase: &str) -> Value {
        let digest = "ab".repeat(32);
        let mut manifest = json!({
            "schema": MANIFEST_SCHEMA,
            "run": "aaaaaaaaaaaa",
            "name": "digits",
            "owner": "ada",
            "phase": phase,
            "cause": null,
            "exit_code": 0,
            "queued_at": 1,
            "started_at": 2,
            "ended_at": 3,
            "plan_sha256": digest,
            "plan": {"deps": {"kind": "lock"}},
            "placement": {},
            "snapshot": {"id": "00", "sha256": digest},
            "datasets": [{"name": "d", "checksum": digest, "verified": true}],
            "environment": {"deps_sha256": digest, "interpreter": {"sha256": digest},
                "packages": [], "packages_sha256": digest},
            "host": {"kernel": "6.1"},
            "isolation": {},
            "trust": {"level": "L2"},
            "attempts": [{"number": 1}],
            "daemon_version": "0",
        });
        if phase == "failed" {
            manifest["cause"] = json!("exit");
            manifest["exit_code"] = json!(1);
        }
        if phase == "cancelled" || phase == "interrupted" {
            manifest["cause"] = json!("lost");
        }
        manifest
    }

    fn pointers(manifest: &Value) -> Vec<String> {
        let defects = completeness(manifest);
        defects.into_iter().map(|defect| defect.at).collect()
    }

    #[test]
    fn each_omission_is_found_in_the_phases_that_need_it() {
        let all: &[&str] = &[
            "queued",
            "starting",
            "running",
            "finishing",
            "completed",
            "failed",
            "cancelled",
            "interrupted",
        ];
        let ended = &["completed", "failed", "cancelled", "interrupted"];
        let ran: &[&str] = &["completed", "failed"];
        let cases: &[(&str, &[&str])] = &[
            ("/run", all),
            ("/name", all),
            ("/owner", all),
            ("/plan", all),
            ("/plan_sha256", all),
            ("/placement", all),
            ("/snapshot/id", all),
            ("/snapshot/sha256", all),
            ("/datasets", all),
            ("/datasets/0/name", all),
            ("/datasets/0/checksum", all),
            ("/attempts", all),
            ("/queued_at", all),
            (
                "/started_at",
                &["running", "finishing", "completed", "failed"],
            ),
            (
                "/attempts/0",
                &["starting", "running", "finishing", "completed"],
            ),
            ("/ended_at", ended),
            ("/trust/level", ended),
            ("/daemon_version", ended),
            ("/cause", &["failed", "cancelled", "interrupted"]),
            ("/exit_code", ran),
            ("/host", ran),
            ("/isolation", ran),
            ("/datasets/0/verified", ran),
            ("/environment/deps_sha256", ran),
            ("/environment/interpreter/sha256", ran),
            ("/environment/packages", ran),
            ("/environment/packages_sha256", ran),
        ];
        for (pointer, phases) in cases {
            for phase in all {
                let mut manifest = complete(phase);
                assert_eq!(pointers(&manifest), Vec::<String>::new(), "{phase}");
                *manifest.pointer_mut(pointer).unwrap() = Value::Null;
                let is_found = pointers(&manifest).contains(&(*pointer).to_owned());
                assert_eq!(is_found, phases.contains(phase), "{pointer} {phase}");
            }
        }
    }

    #[test]
    fn a_run_cancelled_in_the_queue_and_one_that_was_not_prepared_need_no_exit_code() {
        let mut cancelled = complete("cancelled");
        for absent in ["started_at", "exit_code", "host", "isolation"] {
            cancelled[absent] = Value::Null;
        }
        cancelled["attempts"] = json!([]);
        assert_eq!(pointers(&cancelled), Vec::<String>::new());
        let mut unprepared = complete("failed");
        unprepared["cause"] = json!("dataset_changed");
        for absent in ["started_at", "exit_code", "host", "isolation"] {
            unprepared[absent] = Value::Null;
        }
        unprepared["environment"] = Value::Null;
        assert_eq!(pointers(&unprepared), Vec::<String>::new());
    }

    #[test]
    fn a_completed_run_with_another_exit_code_is_a_defect() {
        let mut manifest = complete("completed");
        manifest["exit_code"] = json!(3);
        assert_eq!(pointers(&manifest), ["/exit_code"]);
    }
}
