//! The table of `service:`. What it shares with `experiment:` is read by that table; what
//! a kind says is put in where the recipe is silent.
//!
//! Names that only the machine knows at a start (`${host}`, `${port_NAME}`, `${model}`,
//! `${model_name}`) stay in the command as they are; the executor fills them in.

use std::collections::BTreeMap;

use mlmesh_model::{
    Digest, Keep, ModelRef, Name, ParamValue, Readiness, ReadyRequest, Restart, Service,
    ServiceKind,
};
use serde_json::{Value as Json, json};

use crate::error::{Fault, Position, Report, code, shown};
use crate::experiment::{self, ARGUMENTS_MAX, Draft, ENTRIES_MAX, EXPERIMENT, Placed};
use crate::kind::{Kind, Kinds, READY_WORDS};
use crate::scalar::{clean_text, param_value, text};
use crate::table::{Key, Table, did_you_mean, listed, read_entries, read_list, read_scalar};
use crate::table::{read_text, read_word};
use crate::tree::Entry;
use crate::{agreement, fields, rules, units};

/// What the keys said.
#[derive(Default)]
pub(crate) struct ServiceDraft {
    job: Draft,
    kind: Option<Placed<String>>,
    args: Vec<Placed<String>>,
    parameters: Vec<(String, Placed<ParamValue>)>,
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) ready: Option<Placed<ReadyDraft>>,
    model: Option<Placed<ModelRef>>,
    replicas: Option<u32>,
    restart: Restart,
    restarts: Option<u32>,
    ttl_s: Option<u64>,
    drain_s: Option<u64>,
    labels: BTreeMap<String, String>,
}

/// Reads the entry `service`.
pub(crate) fn read(report: &mut Report, entry: &Entry, kinds: &dyn Kinds) -> Option<Service> {
    let mut draft = ServiceDraft::default();
    SERVICE.read(report, entry.key_at, &entry.value, &mut draft);
    let kind = match &draft.kind {
        Some(named) => Some(kinds.find(report, &named.value, named.at)?),
        None => None,
    };
    if draft.kind.is_none() && draft.job.command.is_empty() && report.is_empty() {
        report.add(
            entry.key_at,
            code::MISSING_KEY,
            "`service` has neither a `kind` nor a `command`",
            "write `kind: llama-server`, or the program as `command: [./serve, --port, \"${port_http}\"]`",
        );
    }
    if let Some(kind) = &kind {
        fill_in(report, entry.key_at, kind, &mut draft);
    }
    take_args(&mut draft);
    check_ports(report, entry.key_at, &draft);
    let known = names_at_start(&draft.ports, draft.model.is_some());
    for name in &known {
        if draft.job.params.contains_key(name) {
            report.add(
                entry.key_at,
                code::CONFLICT,
                format!("`{name}` is not a parameter; its value is known at the start alone"),
                "choose another name",
            );
        }
    }
    draft.job.params_named.extend(known);
    agreement::check(report, &draft.job);
    let ready = ready(report, entry.key_at, kind.as_ref(), &draft)?;
    let keep = Keep {
        restart: draft.restart,
        restarts_max: draft.restarts.unwrap_or(Keep::RESTARTS_DEFAULT),
        ttl_s: draft.ttl_s,
        drain_s: draft.drain_s.unwrap_or(Keep::DRAIN_S_DEFAULT),
    };
    Some(Service {
        job: draft.job.finish()?,
        ports: draft.ports,
        ready,
        kind: kind.map(|kind| kind.named()),
        model: draft.model.map(|model| model.value),
        replicas: draft.replicas.unwrap_or(1),
        keep,
        labels: draft.labels,
    })
}

/// Names in a service's command whose values are known at its start alone.
pub fn start_names(service: &Service) -> Vec<String> {
    names_at_start(&service.ports, service.model.is_some())
}

/// The same, before it is one.
pub(crate) fn names_at_start(ports: &BTreeMap<String, u16>, has_model: bool) -> Vec<String> {
    let model = ["model", "model_name"].into_iter().filter(|_| has_model);
    let fixed = std::iter::once("host").chain(model).map(str::to_owned);
    fixed
        .chain(ports.keys().map(|name| format!("port_{name}")))
        .collect()
}

/// Puts in what the kind says and the recipe does not.
fn fill_in(report: &mut Report, at: Position, kind: &Kind, draft: &mut ServiceDraft) {
    if !draft.job.command.is_empty() {
        report.add(
            draft.job.command[0].at,
            code::CONFLICT,
            format!(
                "`command` stands beside `kind: {}`, which has one",
                kind.name
            ),
            "add arguments with `args`, or leave `kind` away",
        );
    }
    if kind.needs_model && draft.model.is_none() {
        report.add(
            at,
            code::MISSING_KEY,
            format!("a service of kind `{}` needs a `model`", kind.name),
            "write `model: NAME@sha256:…`, or `NAME@RUN:PATH` of a run that put the weights out",
        );
    }
    let at_of = |value: &String| Placed {
        at,
        value: value.clone(),
    };
    draft.job.command = kind.command.iter().map(at_of).collect();
    for (name, port) in &kind.ports {
        draft.ports.entry(name.clone()).or_insert(*port);
    }
    for (name, value) in &kind.env {
        let variable = draft.job.env.entry(name.clone());
        variable.or_insert_with(|| value.clone());
    }
    for (name, given) in std::mem::take(&mut draft.parameters) {
        let Some(parameter) = kind.parameters.get(&name) else {
            let names = || kind.parameters.keys().map(String::as_str);
            report.add(
                given.at,
                code::REFERENCE,
                format!(
                    "`{}` is no parameter of kind `{}`{}",
                    shown(&name),
                    kind.name,
                    did_you_mean(&name, names())
                ),
                format!("its parameters are {}", listed(names())),
            );
            continue;
        };
        match parameter.accept(&given.value) {
            Ok(()) => drop(draft.job.params.insert(name, given.value)),
            Err(fault) => {
                let message = format!("`{}`: {}", shown(&name), fault.message);
                report.add(given.at, code::VALUE, message, fault.hint);
            }
        }
    }
    for (name, parameter) in &kind.parameters {
        draft.job.params_named.insert(name.clone());
        if draft.job.params.contains_key(name) {
            continue;
        }
        match &parameter.default {
            Some(value) => drop(draft.job.params.insert(name.clone(), value.clone())),
            None => report.add_if_empty(
                at,
                code::MISSING_KEY,
                &format!("a service of kind `{}` needs `{name}`", kind.name),
                &format!("write `parameters: {{{name}: …}}`: {}", parameter.about),
            ),
        }
    }
}

fn take_args(draft: &mut ServiceDraft) {
    let args = std::mem::take(&mut draft.args);
    draft.job.command.extend(args);
    // Without a kind, `parameters` are what `params` are.
    for (name, value) in std::mem::take(&mut draft.parameters) {
        draft.job.params_named.insert(name.clone());
        draft.job.params.insert(name, value.value);
    }
}

fn check_ports(report: &mut Report, at: Position, draft: &ServiceDraft) {
    if draft.ports.is_empty() && report.is_empty() {
        report.add(
            at,
            code::MISSING_KEY,
            "a service lacks `ports`: nobody could reach it",
            "write `ports: {http: auto}` and use `${port_http}` in the command",
        );
    }
    let fixed = draft.ports.values().any(|port| *port != 0);
    if fixed && draft.replicas.unwrap_or(1) > 1 {
        report.add(
            at,
            code::CONFLICT,
            "several replicas cannot listen on one port",
            "write `auto` for the port",
        );
    }
}

/// When the service is ready, by the recipe, else its kind, else its model.
fn ready(
    report: &mut Report,
    at: Position,
    kind: Option<&Kind>,
    draft: &ServiceDraft,
) -> Option<Readiness> {
    let of_kind = kind.map(|kind| kind.ready.clone());
    let mut ready = of_kind.unwrap_or(Readiness {
        request: match draft.model {
            Some(_) => ReadyRequest::Completion,
            None => ReadyRequest::Tcp,
        },
        port: None,
        health: None,
        timeout_s: Readiness::TIMEOUT_S_DEFAULT,
    });
    if let Some(given) = &draft.ready {
        given.value.put_into(&mut ready);
    }
    let place = draft.ready.as_ref().map_or(at, |given| given.at);
    if let Some(port) = &ready.port
        && !draft.ports.contains_key(port)
    {
        let names = || draft.ports.keys().map(String::as_str);
        report.add(
            place,
            code::REFERENCE,
            format!(
                "`port: {}` names no port of the service{}",
                shown(port),
                did_you_mean(port, names())
            ),
            format!("its ports are {}", listed(names())),
        );
    }
    let asks = matches!(
        ready.request,
        ReadyRequest::Completion | ReadyRequest::Inference
    );
    if draft.model.is_some() && !asks {
        report.add(
            place,
            code::CONFLICT,
            "a service with a model is ready when the model has answered, not when a page has",
            "write `ready: {request: completion}` or `{request: inference}`",
        );
    }
    report.is_empty().then_some(ready)
}

/// What `ready:` says.
#[derive(Default, Clone)]
pub(crate) struct ReadyDraft {
    request: Option<ReadyRequest>,
    port: Option<String>,
    health: Option<String>,
    timeout_s: Option<u64>,
}

impl ReadyDraft {
    pub(crate) fn put_into(&self, ready: &mut Readiness) {
        ready.request = self.request.clone().unwrap_or(ready.request.clone());
        ready.port = self.port.clone().or(ready.port.take());
        ready.health = self.health.clone().or(ready.health.take());
        ready.timeout_s = self.timeout_s.unwrap_or(ready.timeout_s);
    }
}

pub(crate) static READY: Table<ReadyDraft> = Table {
    name: "ready",
    keys: &[
        Key {
            name: "request",
            required: false,
            about: "what must be answered: completion (one token), inference, or tcp (a connection)",
            read: |report, entry, draft| {
                let words = [0, 1, 2].map(|place: usize| (READY_WORDS[place], place));
                let request = read_word(report, "request", &entry.value, &words);
                draft.request = request.map(|place| match place {
                    0 => ReadyRequest::Completion,
                    1 => ReadyRequest::Inference,
                    _ => ReadyRequest::Tcp,
                });
            },
            schema: || json!({"enum": READY_WORDS}),
        },
        Key {
            name: "path",
            required: false,
            about: "instead: a GET of this path must be answered with success",
            read: |report, entry, draft| {
                let path = read_text(report, "path", &entry.value, http_path);
                draft.request = path.map(ReadyRequest::Http);
            },
            schema: || json!({"type": "string", "pattern": "^/"}),
        },
        Key {
            name: "port",
            required: false,
            about: "name of the port that is asked; the first one without it",
            read: |report, entry, draft| {
                draft.port = read_text(report, "port", &entry.value, port_name);
            },
            schema: || json!({"type": "string"}),
        },
        Key {
            name: "health",
            required: false,
            about: "path whose GET answers with success while the service is well",
            read: |report, entry, draft| {
                draft.health = read_text(report, "health", &entry.value, http_path);
            },
            schema: || json!({"type": "string", "pattern": "^/"}),
        },
        Key {
            name: "timeout",
            required: false,
            about: "how long a start may take, like 60s",
            read: |report, entry, draft| draft.timeout_s = seconds(report, entry),
            schema: duration_schema,
        },
    ],
};

pub(crate) fn ready_of(report: &mut Report, entry: &Entry) -> Option<Placed<ReadyDraft>> {
    let mut value = ReadyDraft::default();
    READY.read(report, entry.key_at, &entry.value, &mut value);
    let at = entry.value.at;
    Some(Placed { at, value })
}

/// A key that `experiment:` has, too.
macro_rules! of_job {
    ($name:literal, $about:literal) => {
        Key {
            name: $name,
            required: false,
            about: $about,
            read: |report, entry, draft| {
                let keys = EXPERIMENT.keys.iter();
                for key in keys.filter(|key| key.name == $name) {
                    (key.read)(report, entry, &mut draft.job);
                }
            },
            schema: || {
                let mut keys = EXPERIMENT.keys.iter();
                let key = keys.find(|key| key.name == $name);
                key.map_or(Json::Null, |key| (key.schema)())
            },
        }
    };
}

pub(crate) static SERVICE: Table<ServiceDraft> = Table {
    name: "service",
    keys: &[
        Key {
            name: "name",
            required: true,
            about: "the service's name, by which it is stopped and scaled",
            read: |report, entry, draft| {
                draft.job.name = read_scalar(report, "name", &entry.value, fields::name);
            },
            schema: || json!({"type": ["string", "number"], "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}),
        },
        Key {
            name: "kind",
            required: false,
            about: "a kind that data describe: a file kinds/KIND.yaml of the project, or a built-in one",
            read: |report, entry, draft| {
                let kind = read_text(report, "kind", &entry.value, kind_name);
                let at = entry.value.at;
                draft.kind = kind.map(|value| Placed { at, value });
            },
            schema: || json!({"type": "string"}),
        },
        Key {
            name: "command",
            required: false,
            about: "instead of a kind: the program and its arguments; `${host}` and `${port_NAME}` are filled in",
            read: |report, entry, draft| experiment::command(report, entry, &mut draft.job),
            schema: || json!({"type": "array", "minItems": 1, "maxItems": ARGUMENTS_MAX, "items": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "args",
            required: false,
            about: "more arguments, behind those of the kind or the command",
            read: |report, entry, draft| {
                let bounds = (ARGUMENTS_MAX, "write it like `[--verbose]`");
                read_list(report, "args", &entry.value, bounds, |report, item| {
                    let argument = read_scalar(report, "args", item, |scalar| {
                        experiment::argument(text(scalar)?)
                    });
                    let at = item.at;
                    draft
                        .args
                        .extend(argument.map(|value| Placed { at, value }));
                });
            },
            schema: || json!({"type": "array", "maxItems": ARGUMENTS_MAX, "items": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "parameters",
            required: false,
            about: "values of the kind's parameters; without a kind, named values for `${name}`",
            read: parameters,
            schema: || json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "ports",
            required: false,
            about: "ports by name; auto takes one that is free at each start",
            read: |report, entry, draft| ports(report, entry, &mut draft.ports),
            schema: ports_schema,
        },
        Key {
            name: "ready",
            required: false,
            about: "what must be answered before the service counts as ready",
            read: |report, entry, draft| draft.ready = ready_of(report, entry),
            schema: || READY.schema(),
        },
        Key {
            name: "model",
            required: false,
            about: "weights that a recorded run put out: NAME@sha256:DIGEST or NAME@RUN:PATH",
            read: |report, entry, draft| {
                let model = read_scalar(report, "model", &entry.value, |scalar| {
                    model_ref(text(scalar)?)
                });
                let at = entry.value.at;
                draft.model = model.map(|value| Placed { at, value });
            },
            schema: || json!({"type": "string", "pattern": "^[^@]+@.+$"}),
        },
        Key {
            name: "replicas",
            required: false,
            about: "how many of it there are to be; absent means 1",
            read: |report, entry, draft| {
                let max = u64::from(Service::REPLICAS_MAX);
                let count = whole(report, entry, "a number of replicas", 1, max);
                draft.replicas = count.and_then(|count| u32::try_from(count).ok());
            },
            schema: || json!({"type": "integer", "minimum": 1, "maximum": Service::REPLICAS_MAX}),
        },
        Key {
            name: "restart",
            required: false,
            about: "after which ends it is started again: never, on-failure (which is usual) or always",
            read: |report, entry, draft| {
                let words = [
                    ("never", Restart::Never),
                    ("on-failure", Restart::OnFailure),
                    ("always", Restart::Always),
                ];
                let word = read_word(report, "restart", &entry.value, &words);
                draft.restart = word.unwrap_or_default();
            },
            schema: || json!({"enum": ["never", "on-failure", "always"]}),
        },
        Key {
            name: "restarts",
            required: false,
            about: "restarts in a row after which it is given up; absent means 5",
            read: |report, entry, draft| {
                let max = u64::from(Keep::RESTARTS_MAX);
                let count = whole(report, entry, "a number of restarts", 0, max);
                draft.restarts = count.and_then(|count| u32::try_from(count).ok());
            },
            schema: || json!({"type": "integer", "minimum": 0, "maximum": Keep::RESTARTS_MAX}),
        },
        Key {
            name: "ttl",
            required: false,
            about: "how long it is kept from its start on, like 8h; absent means until it is stopped",
            read: |report, entry, draft| draft.ttl_s = seconds(report, entry),
            schema: duration_schema,
        },
        Key {
            name: "drain",
            required: false,
            about: "how long requests under way are given when it is to end; absent means 10s",
            read: |report, entry, draft| draft.drain_s = seconds(report, entry),
            schema: duration_schema,
        },
        Key {
            name: "labels",
            required: false,
            about: "tags that its runs begin with, for searches and quotas",
            read: labels,
            schema: || json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}),
        },
        of_job!(
            "environment",
            "interpreter and packages, as in an experiment; strict asks for a lock"
        ),
        of_job!("datasets", "registered data that the service reads"),
        of_job!("resources", "what a replica may use"),
        of_job!("env", "environment variables of the service"),
        of_job!(
            "secrets",
            "names of secrets that the service finds in its environment"
        ),
        of_job!(
            "network",
            "what the service may reach; to be reached itself it needs open"
        ),
        of_job!(
            "sandbox",
            "asks for the sandbox under the relaxed policy too"
        ),
        of_job!(
            "limits",
            "recorded notes a limit that the host cannot enforce; required refuses it"
        ),
        of_job!("on_finish", "who is told when a replica has ended"),
    ],
};

fn parameters(report: &mut Report, entry: &Entry, draft: &mut ServiceDraft) {
    let bounds = (ENTRIES_MAX, "write it like `{slots: 4}`");
    read_entries(report, "parameters", &entry.value, bounds, |report, one| {
        if let Err(fault) = rules::param_name(&one.key) {
            return report.fault(one.key_at, code::VALUE, fault);
        }
        let value = read_scalar(report, &one.key, &one.value, param_value);
        let at = one.value.at;
        let placed = value.map(|value| (one.key.clone(), Placed { at, value }));
        draft.parameters.extend(placed);
    });
}

pub(crate) fn ports(report: &mut Report, entry: &Entry, ports: &mut BTreeMap<String, u16>) {
    let bounds = (Service::PORTS_MAX, "write it like `{http: auto}`");
    read_entries(report, "ports", &entry.value, bounds, |report, port| {
        if let Err(fault) = port_name(&port.key) {
            return report.fault(port.key_at, code::VALUE, fault);
        }
        let number = read_scalar(report, &port.key, &port.value, |scalar| {
            let text = text(scalar)?;
            if text == "auto" {
                return Ok(0);
            }
            let number = units::whole(text, u64::from(u16::MAX));
            number
                .and_then(|number| u16::try_from(number).ok())
                .ok_or_else(|| {
                    Fault::new(
                        format!(
                            "`{}` is not a port; it is `auto`, or a number from 1 to 65535",
                            shown(text)
                        ),
                        "write `auto` for one that is free",
                    )
                })
        });
        ports.extend(number.map(|number| (port.key.clone(), number)));
    });
}

pub(crate) fn ports_schema() -> Json {
    json!({"type": "object", "maxProperties": Service::PORTS_MAX, "additionalProperties": {"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 0, "maximum": u16::MAX}]}})
}

fn labels(report: &mut Report, entry: &Entry, draft: &mut ServiceDraft) {
    use mlmesh_model::Labels;
    let bounds = (Labels::TAGS_MAX, "write it like `{team: blue}`");
    read_entries(report, "labels", &entry.value, bounds, |report, tag| {
        let length = tag.key.chars().count();
        if length == 0 || length > Labels::KEY_CHARS_MAX || clean_text(&tag.key).is_err() {
            report.add(
                tag.key_at,
                code::VALUE,
                format!(
                    "`{}` is not a tag's name; it has 1 to 100 characters",
                    shown(&tag.key)
                ),
                "write it like `{team: blue}`",
            );
            return;
        }
        let value = read_text(report, &tag.key, &tag.value, clean_text);
        draft
            .labels
            .extend(value.map(|value| (tag.key.clone(), value)));
    });
}

fn model_ref(text: &str) -> Result<ModelRef, Fault> {
    let fault = || {
        Fault::new(
            format!(
                "`{}` is not a model; it is `NAME@sha256:DIGEST` or `NAME@RUN:PATH`",
                shown(text)
            ),
            "`ml outputs RUN` shows what a run put out",
        )
    };
    let (name, from) = text.split_once('@').ok_or_else(fault)?;
    let name: Name = name.parse().map_err(|_| fault())?;
    if let Some(digest) = from.strip_prefix("sha256:") {
        let sha256: Digest = digest.parse().map_err(|_| fault())?;
        return Ok(ModelRef {
            name,
            sha256: Some(sha256),
            run: None,
            path: None,
        });
    }
    let (run, path) = from.split_once(':').ok_or_else(fault)?;
    rules::run_reference(run)?;
    rules::relative_path(path)?;
    Ok(ModelRef {
        name,
        sha256: None,
        run: Some(run.to_owned()),
        path: Some(path.to_owned()),
    })
}

fn whole(report: &mut Report, entry: &Entry, what: &str, min: u64, max: u64) -> Option<u64> {
    read_scalar(report, &entry.key, &entry.value, |scalar| {
        let text = text(scalar)?;
        let number = units::whole(text, max).filter(|number| *number >= min);
        number.ok_or_else(|| {
            Fault::new(
                format!("`{}` is not {what}; it is from {min} to {max}", shown(text)),
                "write it like `2`",
            )
        })
    })
}

fn seconds(report: &mut Report, entry: &Entry) -> Option<u64> {
    read_scalar(report, &entry.key, &entry.value, |scalar| {
        units::time_s(text(scalar)?)
    })
}

fn duration_schema() -> Json {
    json!({"type": "string", "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 2})
}

pub(crate) fn port_name(text: &str) -> Result<(), Fault> {
    let good = rules::is_identifier(text) && text.len() <= 32;
    match good && !text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Ok(()),
        false => Err(Fault::new(
            format!(
                "`{}` is not a port's name; it is up to 32 of `a-z0-9_`, from a letter on",
                shown(text)
            ),
            "write a name like `http`",
        )),
    }
}

pub(crate) fn http_path(text: &str) -> Result<(), Fault> {
    let plain = text.starts_with('/')
        && text.len() <= rules::PATH_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    match plain {
        true => Ok(()),
        false => Err(Fault::new(
            format!(
                "`{}` is not a path of HTTP; it begins with `/`",
                shown(text)
            ),
            "write it like `/health`",
        )),
    }
}

pub(crate) fn kind_name(text: &str) -> Result<(), Fault> {
    let parsed: Result<Name, _> = text.parse();
    match parsed {
        Ok(_) => Ok(()),
        Err(_) => Err(Fault::new(
            format!("`{}` is not the name of a kind", shown(text)),
            "write it like `llama-server`",
        )),
    }
}

impl Kind {
    /// As plans have it.
    fn named(&self) -> ServiceKind {
        ServiceKind {
            name: self.name.clone(),
            sha256: self.sha256,
            runtime: self.runtime.clone(),
            metrics: self.metrics.clone(),
        }
    }
}
