//! The tables of the small mappings: environment, dataset, resources, tolerance.

use mlmesh_model::{
    DatasetRef, Digest, Environment, Name, OnFinish, PHASES, Phase, Resources, Tolerance,
};
use serde_json::json;

use crate::error::{Fault, Position, Report, code, shown};
use crate::table::{Key, Table, read_list, read_scalar, read_text};
use crate::tree::{Node, Scalar, Value};
use crate::{rules, scalar, units};

/// What `environment:` as a mapping says.
#[derive(Default)]
pub(crate) struct EnvironmentDraft {
    python: Option<String>,
    lock: Option<String>,
}

pub(crate) static ENVIRONMENT: Table<EnvironmentDraft> = Table {
    name: "environment",
    keys: &[
        Key {
            name: "python",
            required: true,
            about: "version of an interpreter that is on the machine, like \"3.11\"",
            read: |report, entry, draft| {
                draft.python = read_text(report, &entry.key, &entry.value, rules::python_version);
            },
            schema: || json!({"type": ["string", "number"], "examples": ["3.11"]}),
        },
        Key {
            name: "lock",
            required: true,
            about: "lock file of the project: requirements with hashes, or uv.lock",
            read: |report, entry, draft| {
                draft.lock = read_text(report, &entry.key, &entry.value, rules::relative_path);
            },
            schema: || json!({"type": "string", "examples": ["requirements.lock", "uv.lock"]}),
        },
    ],
};

/// Reads `environment:`, the word `current` or a mapping.
pub(crate) fn environment(report: &mut Report, at: Position, node: &Node) -> Option<Environment> {
    if let Value::Scalar(scalar) = &node.value {
        if scalar.text == "current" {
            return Some(Environment::Current);
        }
        report.add(
            node.at,
            code::VALUE,
            format!(
                "`environment`: `{}` is neither the word `current` nor a mapping of `python` and `lock`",
                shown(&scalar.text)
            ),
            "write `{python: \"3.11\", lock: requirements.lock}`, or `current` for the virtual environment you are in",
        );
        return None;
    }
    let mut draft = EnvironmentDraft::default();
    ENVIRONMENT.read(report, at, node, &mut draft);
    Some(Environment::Locked {
        python: draft.python?,
        lock: draft.lock?,
    })
}

/// What one item of `datasets:` says.
#[derive(Default)]
pub(crate) struct DatasetDraft {
    name: Option<Name>,
    version: Option<String>,
    checksum: Option<Digest>,
    mount: Option<String>,
}

pub(crate) static DATASET: Table<DatasetDraft> = Table {
    name: "datasets",
    keys: &[
        Key {
            name: "name",
            required: true,
            about: "name under which `ml data add` registered it",
            read: |report, entry, draft| {
                draft.name = read_scalar(report, &entry.key, &entry.value, name);
            },
            schema: || json!({"type": ["string", "number"]}),
        },
        Key {
            name: "version",
            required: false,
            about: "registered version; absent takes the one with this checksum",
            read: |report, entry, draft| {
                draft.version = read_text(report, &entry.key, &entry.value, rules::dataset_version);
            },
            schema: || json!({"type": ["string", "number"]}),
        },
        Key {
            name: "checksum",
            required: false,
            about: "SHA-256 of the data; a run without it is refused",
            read: |report, entry, draft| {
                draft.checksum = read_scalar(report, &entry.key, &entry.value, checksum);
            },
            schema: || json!({"type": "string", "pattern": "^(sha256:)?[0-9a-fA-F]{64}$"}),
        },
        Key {
            name: "mount",
            required: false,
            about: "where the job finds it, relative to its working directory; absent means data/NAME",
            read: |report, entry, draft| {
                draft.mount = read_text(report, &entry.key, &entry.value, rules::relative_path);
            },
            schema: || json!({"type": "string"}),
        },
    ],
};

/// Reads one item of `datasets:`.
pub(crate) fn dataset(report: &mut Report, node: &Node) -> Option<DatasetRef> {
    let mut draft = DatasetDraft::default();
    DATASET.read(report, node.at, node, &mut draft);
    let name = draft.name?;
    let mount = draft.mount.unwrap_or_else(|| format!("data/{name}"));
    Some(DatasetRef {
        name,
        version: draft.version,
        checksum: draft.checksum,
        mount,
    })
}

pub(crate) static RESOURCES: Table<Resources> = Table {
    name: "resources",
    keys: &[
        Key {
            name: "cpus",
            required: false,
            about: "CPUs, at most three decimals; absent means 1",
            read: |report, entry, resources| {
                if let Some(milli) = plain(report, &entry.key, &entry.value, units::cpu_milli) {
                    resources.cpu_milli = milli;
                }
            },
            schema: || json!({"type": "number", "exclusiveMinimum": 0, "maximum": units::CPUS_MAX}),
        },
        Key {
            name: "memory",
            required: false,
            about: "memory limit, like 1GiB or 512MiB; absent means no limit",
            read: |report, entry, resources| {
                resources.memory_bytes =
                    plain(report, &entry.key, &entry.value, units::memory_bytes);
            },
            schema: || json!({"type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,3})?([kKMGT]B|[KMGT]iB|B)$"}),
        },
        Key {
            name: "gpus",
            required: false,
            about: "whole GPUs; absent means 0",
            read: |report, entry, resources| {
                if let Some(gpus) = plain(report, &entry.key, &entry.value, units::gpus) {
                    resources.gpus = gpus;
                }
            },
            schema: || json!({"type": "integer", "minimum": 0, "maximum": units::GPUS_MAX}),
        },
        Key {
            name: "time",
            required: false,
            about: "wall time after which the attempt is ended, like 90s, 10m or 1h30m",
            read: |report, entry, resources| {
                resources.time_s = plain(report, &entry.key, &entry.value, units::time_s);
            },
            schema: || json!({"type": "string", "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 2}),
        },
    ],
};

pub(crate) static TOLERANCE: Table<Tolerance> = Table {
    name: "tolerance",
    keys: &[
        Key {
            name: "abs",
            required: false,
            about: "largest absolute difference",
            read: |report, entry, tolerance| {
                tolerance.abs = read_text(report, &entry.key, &entry.value, bound);
            },
            schema: || json!({"type": ["number", "string"]}),
        },
        Key {
            name: "rel",
            required: false,
            about: "largest difference relative to the first value",
            read: |report, entry, tolerance| {
                tolerance.rel = read_text(report, &entry.key, &entry.value, bound);
            },
            schema: || json!({"type": ["number", "string"]}),
        },
    ],
};

pub(crate) static ON_FINISH: Table<OnFinish> = Table {
    name: "on_finish",
    keys: &[
        Key {
            name: "command",
            required: false,
            about: "program and arguments, executed as the daemon's user; only its owner may",
            read: |report, entry, hook| {
                let bounds = (
                    OnFinish::ARGUMENTS_MAX,
                    "write it like `[notify-send, ended]`",
                );
                read_list(report, &entry.key, &entry.value, bounds, |report, item| {
                    hook.command
                        .extend(read_scalar(report, &entry.key, item, |scalar| {
                            scalar::text(scalar).map(str::to_owned)
                        }));
                });
            },
            schema: || json!({"type": "array", "minItems": 1, "maxItems": OnFinish::ARGUMENTS_MAX, "items": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "webhook",
            required: false,
            about: "https or http URL to which what came of it is posted as JSON",
            read: |report, entry, hook| {
                hook.webhook = read_text(report, &entry.key, &entry.value, |_| Ok(()));
            },
            schema: || json!({"type": "string", "pattern": "^https?://", "maxLength": OnFinish::URL_BYTES_MAX}),
        },
        Key {
            name: "secret",
            required: false,
            about: "name of a stored secret that signs what is posted",
            read: |report, entry, hook| {
                hook.secret = read_text(report, &entry.key, &entry.value, rules::variable_name);
            },
            schema: || json!({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}),
        },
        Key {
            name: "when",
            required: false,
            about: "only these ends: completed, failed, cancelled, interrupted; absent means every end",
            read: |report, entry, hook| {
                let bounds = (4, "write it like `[failed, interrupted]`");
                read_list(report, &entry.key, &entry.value, bounds, |report, item| {
                    hook.when
                        .extend(read_scalar(report, &entry.key, item, ended_phase));
                });
            },
            schema: || json!({"type": "array", "minItems": 1, "items": {"enum": ["completed", "failed", "cancelled", "interrupted"]}, "uniqueItems": true}),
        },
    ],
};

/// Reads `on_finish:` and what must hold between its keys.
pub(crate) fn on_finish(report: &mut Report, key_at: Position, value: &Node) -> Option<OnFinish> {
    let mut hook = OnFinish::default();
    let before = report.count();
    ON_FINISH.read(report, key_at, value, &mut hook);
    if report.count() == before
        && let Err(fault) = check_on_finish(&hook)
    {
        report.add(value.at, code::VALUE, fault.message, fault.hint);
    }
    Some(hook)
}

fn ended_phase(scalar: &Scalar) -> Result<Phase, Fault> {
    let text = scalar::text(scalar)?;
    let mut ended = PHASES.iter().filter(|phase| phase.is_ended());
    let found = ended.find(|phase| phase.as_str() == text);
    found.copied().ok_or_else(|| {
        Fault::new(
            format!("`{}` is no end of a run", shown(text)),
            "completed, failed, cancelled or interrupted",
        )
    })
}

/// What must hold of a hook, wherever it comes from.
pub(crate) fn check_on_finish(hook: &OnFinish) -> Result<(), Fault> {
    let fault = |message: &str, hint: &str| Err(Fault::new(message.to_owned(), hint));
    let like = "write `{command: [notify, ended]}` or `{webhook: \"https://example.org/hook\"}`";
    match (hook.command.first(), &hook.webhook) {
        (None, None) | (Some(_), Some(_)) => {
            return fault("`on_finish` has either a `command` or a `webhook`", like);
        }
        (Some(program), None) if program.trim().is_empty() => {
            return fault("the command of `on_finish` names no program", like);
        }
        (Some(_), None) if hook.secret.is_some() => {
            return fault(
                "a `secret` of `on_finish` signs what a webhook gets",
                "remove it",
            );
        }
        (Some(_), None) => {
            for argument in &hook.command {
                scalar::clean_text(argument)?;
            }
        }
        (None, Some(url)) => webhook_url(url)?,
    }
    let mut seen = std::collections::BTreeSet::new();
    if hook.command.len() > OnFinish::ARGUMENTS_MAX
        || !hook
            .when
            .iter()
            .all(|phase| phase.is_ended() && seen.insert(*phase))
    {
        return fault(
            "`on_finish` names at most 256 arguments, and ends of runs, each once",
            like,
        );
    }
    hook.secret.as_deref().map_or(Ok(()), rules::variable_name)
}

/// An address that HTTP can be spoken with: nothing is hidden in it, no password stands
/// there.
fn webhook_url(url: &str) -> Result<(), Fault> {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let plain = url.len() <= OnFinish::URL_BYTES_MAX
        && url
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\');
    if plain && host.is_some_and(|host| !host.is_empty() && !host.contains('@')) {
        return Ok(());
    }
    Err(Fault::new(
        format!(
            "`{}` is no address of a webhook; it begins with `https://` or `http://`, has a host, \
             and neither a password, a blank nor a fragment",
            shown(url)
        ),
        "put what nobody may read into a secret, which signs what is posted",
    ))
}

/// A registered or an experiment's name.
pub(crate) fn name(scalar: &Scalar) -> Result<Name, Fault> {
    let text = scalar::text(scalar)?;
    text.parse().map_err(|_| {
        Fault::new(
            format!(
                "`{}` is not a name; a name is up to 64 of `A-Za-z0-9._-` and starts with a letter or digit",
                shown(text)
            ),
            "write it like `digits` or `mlp-v2`",
        )
    })
}

fn checksum(scalar: &Scalar) -> Result<Digest, Fault> {
    let text = scalar::text(scalar)?;
    text.parse().map_err(|_| {
        Fault::new(
            format!(
                "`{}` is not a checksum; a checksum is `sha256:` and 64 hex digits",
                shown(text)
            ),
            "`ml data add` prints it",
        )
    })
}

pub(crate) fn bound(text: &str) -> Result<(), Fault> {
    match scalar::decimal(text) {
        Some(value) if value >= 0.0 => Ok(()),
        _ => Err(Fault::new(
            format!(
                "`{}` is not a bound; a bound is a number from 0",
                shown(text)
            ),
            "write it like `0` or `1e-3`",
        )),
    }
}

/// A value with a unit or a number, as typed.
fn plain<T>(
    report: &mut Report,
    name: &str,
    node: &Node,
    rule: impl FnOnce(&str) -> Result<T, Fault>,
) -> Option<T> {
    read_scalar(report, name, node, |scalar| rule(scalar::text(scalar)?))
}
