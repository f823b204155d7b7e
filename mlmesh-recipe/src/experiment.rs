//! The table of `experiment:`. What must hold between its keys stands in `agreement`.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::{
    DatasetRef, Environment, Experiment, LimitsPolicy, Name, Network, OnFinish, ParamValue,
    Resources, RetryOn, Seed, Sweep, Tolerance,
};
use serde_json::json;

use crate::error::{Fault, Position, Report, code, shown};
use crate::hosts::{Endpoint, HOSTS_MAX, host_ports};
use crate::scalar::{INTEGER_END, clean_text, param_value, text};
use crate::substitute::ARGUMENT_BYTES_MAX;
use crate::sweep::PlacedSweep;
use crate::table::{Key, Table, read_entries, read_list, read_scalar, read_text, read_word};
use crate::tree::{Entry, Node, Value};
use crate::{agreement, fields, rules, sweep, units};

/// Elements of a command.
pub(crate) const ARGUMENTS_MAX: usize = 4096;
/// Parameters, variables, outputs, metrics with a tolerance: each of them.
pub(crate) const ENTRIES_MAX: usize = 1024;
/// Datasets, secrets, runs to wait for: each of them.
pub(crate) const ITEMS_MAX: usize = 256;
/// Retries of one run.
pub(crate) const RETRIES_MAX: u64 = 100;

/// A value and where it stands.
pub(crate) struct Placed<T> {
    pub(crate) at: Position,
    pub(crate) value: T,
}

/// What the keys said, before it is known whether they agree.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) name: Option<Name>,
    pub(crate) command: Vec<Placed<String>>,
    pub(crate) params: BTreeMap<String, ParamValue>,
    /// Also those whose value was wrong, so that one error is not reported twice.
    pub(crate) params_named: BTreeSet<String>,
    pub(crate) seed: Seed,
    pub(crate) seed_at: Option<Position>,
    pub(crate) sweep: Option<PlacedSweep>,
    /// `sweep:` stands there and could not be read.
    pub(crate) sweep_broken: bool,
    environment: Option<Environment>,
    pub(crate) datasets: Vec<Placed<DatasetRef>>,
    outputs: Vec<Placed<String>>,
    pub(crate) resources: Resources,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) secrets: Vec<Placed<String>>,
    network: Option<Network>,
    retries: u32,
    retry_on: Vec<Placed<RetryOn>>,
    tolerance: BTreeMap<String, Tolerance>,
    sandbox: bool,
    api: bool,
    limits: LimitsPolicy,
    after: Vec<Placed<String>>,
    on_finish: Option<OnFinish>,
}

/// Reads the entry `experiment`.
pub(crate) fn read(report: &mut Report, entry: &Entry) -> Option<Experiment> {
    let mut draft = Draft::default();
    EXPERIMENT.read(report, entry.key_at, &entry.value, &mut draft);
    agreement::check(report, &draft);
    draft.finish()
}

pub(crate) static EXPERIMENT: Table<Draft> = Table {
    name: "experiment",
    keys: &[
        Key {
            name: "name",
            required: true,
            about: "the experiment's name, for people",
            read: |report, entry, draft| {
                draft.name = read_scalar(report, "name", &entry.value, fields::name);
            },
            schema: || json!({"type": ["string", "number"], "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}),
        },
        Key {
            name: "command",
            required: true,
            about: "the program and its arguments, a list; `${param}` and `${seed}` are filled in",
            read: command,
            schema: || json!({"type": "array", "minItems": 1, "maxItems": ARGUMENTS_MAX, "items": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "params",
            required: false,
            about: "named values for `${name}`",
            read: params,
            schema: || json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "seed",
            required: false,
            about: "the seed as `${seed}` and MLMESH_SEED; none declares that no randomness is drawn",
            read: seed,
            schema: || json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": INTEGER_END - 1}, {"const": "none"}]}),
        },
        Key {
            name: "sweep",
            required: false,
            about: "several runs from one recipe: lists (a grid), zip: or random:",
            read: |report, entry, draft| {
                draft.sweep = sweep::read(report, &entry.value);
                draft.sweep_broken = draft.sweep.is_none();
            },
            schema: sweep::schema,
        },
        Key {
            name: "environment",
            required: false,
            about: "interpreter and packages; current takes the caller's virtual environment (relaxed only)",
            read: |report, entry, draft| {
                draft.environment = fields::environment(report, entry.key_at, &entry.value);
            },
            schema: || json!({"oneOf": [{"const": "current"}, fields::ENVIRONMENT.schema()]}),
        },
        Key {
            name: "datasets",
            required: false,
            about: "registered data that the job reads",
            read: datasets,
            schema: || json!({"type": "array", "maxItems": ITEMS_MAX, "items": fields::DATASET.schema()}),
        },
        Key {
            name: "outputs",
            required: false,
            about: "globs of files to collect, relative to the working directory; each must match something",
            read: outputs,
            schema: || json!({"type": "array", "maxItems": ENTRIES_MAX, "items": {"type": "string"}, "uniqueItems": true}),
        },
        Key {
            name: "resources",
            required: false,
            about: "what a run may use",
            read: |report, entry, draft| {
                fields::RESOURCES.read(report, entry.key_at, &entry.value, &mut draft.resources);
            },
            schema: || fields::RESOURCES.schema(),
        },
        Key {
            name: "env",
            required: false,
            about: "environment variables of the job",
            read: env,
            schema: || json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "secrets",
            required: false,
            about: "names of secrets that the job finds in its environment; never their values",
            read: secrets,
            schema: || json!({"type": "array", "maxItems": ITEMS_MAX, "items": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}, "uniqueItems": true}),
        },
        Key {
            name: "network",
            required: false,
            about: "what the job may reach: none, open, or a list of `host` (its ports 80 and 443) and `host:port`",
            read: |report, entry, draft| draft.network = network(report, &entry.value),
            schema: || json!({"oneOf": [{"enum": ["none", "open"]}, {"type": "array", "minItems": 1, "maxItems": HOSTS_MAX, "items": {"type": "string"}}]}),
        },
        Key {
            name: "retries",
            required: false,
            about: "how often a lost or interrupted attempt is tried again",
            read: retries,
            schema: || json!({"type": "integer", "minimum": 0, "maximum": RETRIES_MAX}),
        },
        Key {
            name: "retry_on",
            required: false,
            about: "what else is tried again: exit means an exit code other than 0",
            read: retry_on,
            schema: || json!({"type": "array", "items": {"enum": ["exit"]}, "uniqueItems": true}),
        },
        Key {
            name: "tolerance",
            required: false,
            about: "what reproduced means, by metric",
            read: tolerance,
            schema: || json!({"type": "object", "additionalProperties": fields::TOLERANCE.schema()}),
        },
        Key {
            name: "sandbox",
            required: false,
            about: "asks for the sandbox under the relaxed policy too",
            read: |report, entry, draft| {
                let words = [("true", true), ("false", false)];
                draft.sandbox = read_word(report, "sandbox", &entry.value, &words).unwrap_or(false);
            },
            schema: || json!({"type": "boolean"}),
        },
        Key {
            name: "api",
            required: false,
            about: "gives the job a token for the daemon's API, which reaches its own run only; needs network: open",
            read: |report, entry, draft| {
                let words = [("true", true), ("false", false)];
                draft.api = read_word(report, "api", &entry.value, &words).unwrap_or(false);
            },
            schema: || json!({"type": "boolean"}),
        },
        Key {
            name: "on_finish",
            required: false,
            about: "who is told when the run, or the whole sweep, has ended: a command or a webhook",
            read: |report, entry, draft| {
                draft.on_finish = fields::on_finish(report, entry.key_at, &entry.value);
            },
            schema: || fields::ON_FINISH.schema(),
        },
        Key {
            name: "limits",
            required: false,
            about: "recorded notes a limit that the host cannot enforce; required refuses it",
            read: |report, entry, draft| {
                let words = [
                    ("recorded", LimitsPolicy::Recorded),
                    ("required", LimitsPolicy::Required),
                ];
                draft.limits =
                    read_word(report, "limits", &entry.value, &words).unwrap_or_default();
            },
            schema: || json!({"enum": ["recorded", "required"]}),
        },
        Key {
            name: "after",
            required: false,
            about: "runs that must have completed first: ids, the start of one, or @last",
            read: after,
            schema: || json!({"type": "array", "maxItems": ITEMS_MAX, "items": {"type": "string"}, "uniqueItems": true}),
        },
    ],
};

pub(crate) fn command(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = command_hint(&entry.value);
    read_list(
        report,
        "command",
        &entry.value,
        (ARGUMENTS_MAX, &hint),
        |report, item| {
            let element = read_scalar(report, "command", item, |scalar| argument(text(scalar)?));
            draft
                .command
                .extend(element.map(|value| Placed { at: item.at, value }));
        },
    );
    let Value::Sequence(items) = &entry.value.value else {
        return;
    };
    let first_is_empty = items.first().is_some_and(
        |item| matches!(&item.value, Value::Scalar(scalar) if !scalar.plain && scalar.text.trim().is_empty()),
    );
    if items.is_empty() || first_is_empty {
        report.add(
            entry.value.at,
            code::VALUE,
            "`command` names no program; its first element is one",
            "write it like `[python, train.py]`",
        );
    }
}

/// For a command typed as one line: the same as a list, where that is certain.
fn command_hint(node: &Node) -> String {
    let words: Vec<String> = match &node.value {
        Value::Scalar(scalar)
            if !scalar
                .text
                .contains(['"', '\'', '\\', '|', '>', '<', '&', ';', '`']) =>
        {
            scalar.text.split_whitespace().map(flow_word).collect()
        }
        _ => Vec::new(),
    };
    let list = words.join(", ");
    if list.is_empty() || list.len() > 200 || list.contains(char::is_control) {
        return "write the program and its arguments as a list, like `[python, train.py]`; no shell is involved".to_owned();
    }
    format!("write `[{list}]`; no shell is involved")
}

fn flow_word(word: &str) -> String {
    if word.contains([
        '[', ']', '{', '}', ',', ':', '#', '*', '!', '%', '@', '?', '~',
    ]) {
        format!("\"{word}\"")
    } else {
        word.to_owned()
    }
}

pub(crate) fn argument(text: &str) -> Result<String, Fault> {
    if text.len() > ARGUMENT_BYTES_MAX {
        return Err(Fault::new(
            format!(
                "`{}` has {} bytes; an argument has at most {ARGUMENT_BYTES_MAX}",
                shown(text),
                text.len()
            ),
            "put long values into a file of the project and name the file",
        ));
    }
    Ok(text.to_owned())
}

fn params(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = "write it like `{lr: 0.1, epochs: 5}`";
    read_entries(
        report,
        "params",
        &entry.value,
        (ENTRIES_MAX, hint),
        |report, param| {
            if param.key == "seed" {
                report.add(
                    param.key_at,
                    code::CONFLICT,
                    "`seed` is not a parameter; it is a key of `experiment`",
                    "move it one level up: `seed: 7`",
                );
                return;
            }
            draft.params_named.insert(param.key.clone());
            if let Err(fault) = rules::param_name(&param.key) {
                report.fault(param.key_at, code::VALUE, fault);
                return;
            }
            if matches!(param.value.value, Value::Sequence(_)) {
                report.add(
                    param.value.at,
                    code::WRONG_TYPE,
                    format!(
                        "`{}` needs a single value; this is a list",
                        shown(&param.key)
                    ),
                    "lists of values to try belong in `sweep:`",
                );
                return;
            }
            if let Some(value) = read_scalar(report, &param.key, &param.value, param_value) {
                draft.params.insert(param.key.clone(), value);
            }
        },
    );
}

fn seed(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    draft.seed_at = Some(entry.key_at);
    let seed = read_scalar(report, "seed", &entry.value, |scalar| {
        if scalar.text == "none" {
            return Ok(Seed::None);
        }
        units::whole(&scalar.text, INTEGER_END - 1)
            .filter(|_| scalar.plain)
            .map(Seed::Value)
            .ok_or_else(|| {
                Fault::new(
                    format!(
                        "`{}` is not a seed; a seed is a whole number from 0, below 2^53, or `none`",
                        shown(&scalar.text)
                    ),
                    "write `seed: 7`, or `seed: none` to declare that no randomness is drawn",
                )
            })
    });
    draft.seed = seed.unwrap_or_default();
}

fn datasets(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = "write it like `[{name: digits, version: \"1\", checksum: \"sha256:…\"}]`";
    read_list(
        report,
        "datasets",
        &entry.value,
        (ITEMS_MAX, hint),
        |report, item| {
            let dataset = fields::dataset(report, item);
            draft
                .datasets
                .extend(dataset.map(|value| Placed { at: item.at, value }));
        },
    );
}

fn outputs(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = "write it like `[model.npz, \"plots/*.svg\"]`";
    texts(
        report,
        entry,
        (ENTRIES_MAX, hint),
        rules::glob,
        &mut draft.outputs,
    );
}

pub(crate) fn env(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = "write it like `{OMP_NUM_THREADS: \"1\"}`";
    read_entries(
        report,
        "env",
        &entry.value,
        (ENTRIES_MAX, hint),
        |report, variable| {
            if let Err(fault) = rules::variable_name(&variable.key) {
                report.fault(variable.key_at, code::VALUE, fault);
                return;
            }
            let value = read_scalar(report, &variable.key, &variable.value, |scalar| {
                argument(text(scalar)?)
            });
            if let Some(value) = value {
                draft.env.insert(variable.key.clone(), value);
            }
        },
    );
}

fn secrets(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint =
        "list names only, like `[WANDB_API_KEY]`; values come from the secret store or from you";
    texts(
        report,
        entry,
        (ITEMS_MAX, hint),
        rules::variable_name,
        &mut draft.secrets,
    );
}

fn network(report: &mut Report, node: &Node) -> Option<Network> {
    if matches!(node.value, Value::Scalar(_)) {
        let words = [("none", false), ("open", true)];
        return read_word(report, "network", node, &words)
            .map(|open| if open { Network::Open } else { Network::None });
    }
    let mut hosts: Vec<String> = Vec::new();
    let mut seen: BTreeSet<Endpoint> = BTreeSet::new();
    let hint = "write `none`, `open`, or a list of hosts like `[example.org]`";
    read_list(
        report,
        "network",
        node,
        (HOSTS_MAX, hint),
        |report, item| {
            let read = read_scalar(report, "network", item, |scalar| {
                let host = text(scalar)?;
                Ok((host.to_owned(), host_ports(host)?))
            });
            let Some((host, endpoints)) = read else {
                return;
            };
            if let Some(endpoint) = endpoints.iter().find(|endpoint| seen.contains(endpoint)) {
                report.repeated(item.at, "network", &endpoint.to_string());
            }
            seen.extend(endpoints);
            hosts.push(host);
        },
    );
    if matches!(&node.value, Value::Sequence(items) if items.is_empty()) {
        report.add(
            node.at,
            code::VALUE,
            "`network` lists no host",
            "write `network: none` when the job needs no network",
        );
    }
    Some(Network::Hosts(hosts))
}

fn retries(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let retries = read_scalar(report, "retries", &entry.value, |scalar| {
        let text = text(scalar)?;
        units::whole(text, RETRIES_MAX)
            .and_then(|retries| u32::try_from(retries).ok())
            .ok_or_else(|| {
                Fault::new(
                    format!("`{}` is not a number of retries; it is a whole number from 0 to {RETRIES_MAX}", shown(text)),
                    "write it like `1`",
                )
            })
    });
    draft.retries = retries.unwrap_or(0);
}

fn retry_on(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = "write `[exit]` to retry an exit code other than 0";
    read_list(
        report,
        "retry_on",
        &entry.value,
        (ITEMS_MAX, hint),
        |report, item| {
            let Some(value) = read_word(report, "retry_on", item, &[("exit", RetryOn::Exit)])
            else {
                return;
            };
            if draft.retry_on.iter().any(|known| known.value == value) {
                report.repeated(item.at, "retry_on", "exit");
            }
            draft.retry_on.push(Placed { at: item.at, value });
        },
    );
}

fn tolerance(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = "write it like `{accuracy: {abs: 0}}`";
    read_entries(
        report,
        "tolerance",
        &entry.value,
        (ENTRIES_MAX, hint),
        |report, metric| {
            if metric.key.is_empty() || metric.key.len() > 256 || clean_text(&metric.key).is_err() {
                report.add(
                metric.key_at,
                code::VALUE,
                format!("`{}` is not a metric's name; a name has 1 to 256 bytes and no control characters", shown(&metric.key)),
                hint,
            );
                return;
            }
            let mut bounds = Tolerance::default();
            fields::TOLERANCE.read(report, metric.key_at, &metric.value, &mut bounds);
            if matches!(&metric.value.value, Value::Mapping(entries) if entries.is_empty()) {
                report.add(
                    metric.value.at,
                    code::VALUE,
                    format!(
                        "`{}` has no bound; it needs `abs`, `rel` or both",
                        shown(&metric.key)
                    ),
                    hint,
                );
            }
            draft.tolerance.insert(metric.key.clone(), bounds);
        },
    );
}

fn after(report: &mut Report, entry: &Entry, draft: &mut Draft) {
    let hint = "write it like `[\"@last\"]`";
    texts(
        report,
        entry,
        (ITEMS_MAX, hint),
        rules::run_reference,
        &mut draft.after,
    );
}

/// A list of different texts that a rule accepts.
fn texts(
    report: &mut Report,
    entry: &Entry,
    bounds: (usize, &str),
    rule: fn(&str) -> Result<(), Fault>,
    target: &mut Vec<Placed<String>>,
) {
    let mut seen = BTreeSet::new();
    read_list(report, &entry.key, &entry.value, bounds, |report, item| {
        let Some(value) = read_text(report, &entry.key, item, rule) else {
            return;
        };
        if !seen.insert(value.clone()) {
            report.repeated(item.at, &entry.key, &value);
        }
        target.push(Placed { at: item.at, value });
    });
}

impl Draft {
    pub(crate) fn finish(self) -> Option<Experiment> {
        let values = |placed: Vec<Placed<String>>| -> Vec<String> {
            placed.into_iter().map(|placed| placed.value).collect()
        };
        let mut secrets = values(self.secrets);
        secrets.sort();
        Some(Experiment {
            name: self.name?,
            command: values(self.command),
            params: self.params,
            seed: self.seed,
            sweep: self.sweep.map(|placed| -> Sweep { placed.sweep }),
            environment: self.environment,
            datasets: self
                .datasets
                .into_iter()
                .map(|placed| placed.value)
                .collect(),
            outputs: values(self.outputs),
            resources: self.resources,
            env: self.env,
            secrets,
            network: self.network,
            retries: self.retries,
            retry_on: self
                .retry_on
                .into_iter()
                .map(|placed| placed.value)
                .collect(),
            tolerance: self.tolerance,
            sandbox: self.sandbox,
            api: self.api,
            limits: self.limits,
            after: values(self.after),
            on_finish: self.on_finish,
        })
    }
}
