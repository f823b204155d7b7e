//! Kinds of services, which are data: a file says which command, which ports, what is
//! asked before one is ready, and which parameters a recipe may set. A user adds a kind by
//! writing such a file; those that come with the program are such files, too.
//!
//! It opens no file: whoever parses a recipe says where kinds are found.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::{Digest, Name, ParamValue, Readiness, ReadyRequest};
use serde_json::{Value as Json, json};

use crate::error::{Fault, Position, RecipeErrors, Report, code, shown};
use crate::experiment::{ARGUMENTS_MAX, Draft, ENTRIES_MAX, Placed, command, env};
use crate::scalar::{clean_text, decimal, param_value};
use crate::service::{self, ReadyDraft, http_path, kind_name, names_at_start, port_name};
use crate::substitute::{Piece, pieces};
use crate::table::{Key, Table, did_you_mean, listed, read_entries, read_list};
use crate::table::{read_scalar, read_text, read_word};
use crate::tree::{self, Entry};
use crate::{fields, rules};

/// What `ready: request:` may be.
pub(crate) const READY_WORDS: [&str; 3] = ["completion", "inference", "tcp"];

/// Kinds that come with the program: name and file.
const BUILT_IN: [(&str, &str); 4] = [
    ("llama-server", include_str!("../kinds/llama-server.yaml")),
    ("vllm", include_str!("../kinds/vllm.yaml")),
    ("triton", include_str!("../kinds/triton.yaml")),
    ("mlserver", include_str!("../kinds/mlserver.yaml")),
];

/// The file of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindSource {
    /// What errors show.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// Finds the file of a kind by its name; what it does not find may be built in.
pub type FindKind<'a> = dyn Fn(&str) -> Option<KindSource> + 'a;

/// Names of the kinds that come with the program.
pub fn built_in_kinds() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// Checks the file of a kind, as a recipe that names it would.
///
/// # Errors
/// All errors of the file by position.
pub fn check_kind(file_name: &str, text: &str) -> Result<(), RecipeErrors> {
    parse(file_name, text).map(drop)
}

/// JSON Schema (draft 2020-12) of the file of a kind.
pub fn kind_schema() -> Json {
    let mut schema = KIND.schema();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "mlmesh service kind".into();
    schema
}

/// Where kinds are looked for.
pub(crate) trait Kinds {
    /// The kind of that name; what is wrong with it goes into the report.
    fn find(&self, report: &mut Report, name: &str, at: Position) -> Option<Kind>;
}

impl Kinds for &FindKind<'_> {
    fn find(&self, report: &mut Report, name: &str, at: Position) -> Option<Kind> {
        let built_in = || {
            let (name, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
            Some(KindSource {
                file: format!("kinds/{name}.yaml (built in)"),
                text: (*text).to_owned(),
            })
        };
        let Some(source) = self(name).or_else(built_in) else {
            report.add(
                at,
                code::REFERENCE,
                format!(
                    "there is no kind `{}`{}",
                    shown(name),
                    did_you_mean(name, built_in_kinds())
                ),
                format!(
                    "describe it in `kinds/{}.yaml` of the project; built in are {}",
                    shown(name),
                    listed(built_in_kinds())
                ),
            );
            return None;
        };
        match parse(&source.file, &source.text) {
            Ok(kind) if kind.name.as_str() == name => Some(kind),
            Ok(kind) => {
                report.add(
                    at,
                    code::CONFLICT,
                    format!(
                        "`{}` describes the kind `{}`, not `{}`",
                        shown(&source.file),
                        kind.name,
                        shown(name)
                    ),
                    "a kind's file has the name of the kind",
                );
                None
            }
            Err(errors) => {
                report.absorb(errors);
                None
            }
        }
    }
}

/// A kind of service.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) name: Name,
    pub(crate) sha256: Digest,
    pub(crate) runtime: Option<String>,
    pub(crate) metrics: Option<String>,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) ready: Readiness,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    pub(crate) needs_model: bool,
}

/// A parameter of a kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parameter {
    pub(crate) about: String,
    pub(crate) default: Option<ParamValue>,
    default_at: Option<Position>,
    of: Type,
    min: Option<String>,
    max: Option<String>,
    choices: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Type {
    Int,
    Number,
    Bool,
    #[default]
    Text,
}

const TYPES: [(&str, Type); 4] = [
    ("int", Type::Int),
    ("number", Type::Number),
    ("bool", Type::Bool),
    ("text", Type::Text),
];

impl Parameter {
    /// Whether a recipe may give this value.
    pub(crate) fn accept(&self, value: &ParamValue) -> Result<(), Fault> {
        let text = value.to_string();
        let fault = |needs: &str| {
            let message = format!("`{}` is not {needs}", shown(&text));
            let hint = match self.about.as_str() {
                "" => "the file of the kind says what it may be".to_owned(),
                about => format!("it is: {about}"),
            };
            Err(Fault::new(message, hint))
        };
        match (self.of, value) {
            (Type::Int, ParamValue::Int(_)) | (Type::Bool, ParamValue::Bool(_)) => {}
            (Type::Int, _) => return fault("a whole number"),
            (Type::Bool, _) => return fault("`true` or `false`"),
            (Type::Number, _) if decimal(&text).is_none() => return fault("a number"),
            (Type::Number | Type::Text, _) => {}
        }
        let bound = |bound: &Option<String>| bound.as_deref().and_then(decimal);
        let number = decimal(&text).filter(|_| matches!(self.of, Type::Int | Type::Number));
        if let Some(number) = number {
            if bound(&self.min).is_some_and(|min| number < min) {
                return fault(&format!("at least {}", self.min.as_deref().unwrap_or("")));
            }
            if bound(&self.max).is_some_and(|max| number > max) {
                return fault(&format!("at most {}", self.max.as_deref().unwrap_or("")));
            }
        }
        if !self.choices.is_empty() && !self.choices.contains(&text) {
            let names = self.choices.iter().map(String::as_str);
            return fault(&format!("one of {}", listed(names)));
        }
        Ok(())
    }
}

/// What the keys said.
#[derive(Default)]
struct KindDraft {
    name: Option<Name>,
    job: Draft,
    runtime: Option<String>,
    metrics: Option<String>,
    ports: BTreeMap<String, u16>,
    ready: Option<Placed<ReadyDraft>>,
    parameters: BTreeMap<String, Parameter>,
    needs_model: bool,
}

fn parse(file: &str, text: &str) -> Result<Kind, RecipeErrors> {
    let mut report = Report::new(file);
    let kind = tree::read(text, &mut report).and_then(|root| {
        let mut draft = KindDraft::default();
        KIND.read(&mut report, root.at, &root, &mut draft);
        draft.finish(&mut report, root.at, Digest::of(text.as_bytes()))
    });
    match kind {
        Some(kind) if report.is_empty() => Ok(kind),
        _ => {
            let hint = "`ml recipe schema --kind` prints what such a file may hold";
            let message = "the kind could not be read";
            report.add_if_empty(Position::START, code::SYNTAX, message, hint);
            Err(report.into_errors())
        }
    }
}

impl KindDraft {
    fn finish(self, report: &mut Report, at: Position, sha256: Digest) -> Option<Kind> {
        let mut known: BTreeSet<String> = self.parameters.keys().cloned().collect();
        known.extend(names_at_start(&self.ports, self.needs_model));
        for element in &self.job.command {
            for piece in pieces(&element.value) {
                let Piece::Reference(name) = piece else {
                    continue;
                };
                if !known.contains(name) {
                    let names = known.iter().map(String::as_str);
                    report.add(
                        element.at,
                        code::REFERENCE,
                        format!("`${{{name}}}` names nothing{}", did_you_mean(name, names)),
                        "declare it in `parameters`; ports are `${port_NAME}`, weights `${model}` with `model: required`",
                    );
                }
            }
        }
        for (name, parameter) in &self.parameters {
            if let Some(value) = &parameter.default
                && let Err(fault) = parameter.accept(value)
            {
                let message = format!("the default of `{name}`: {}", fault.message);
                report.add(
                    parameter.default_at.unwrap_or(at),
                    code::VALUE,
                    message,
                    fault.hint,
                );
            }
        }
        let mut ready = Readiness {
            request: ReadyRequest::Tcp,
            port: None,
            health: None,
            timeout_s: Readiness::TIMEOUT_S_DEFAULT,
        };
        if let Some(given) = &self.ready {
            given.value.put_into(&mut ready);
            if let Some(port) = &ready.port
                && !self.ports.contains_key(port)
            {
                let message = format!("`port: {}` names no port of the kind", shown(port));
                report.add(given.at, code::REFERENCE, message, "ports stand in `ports`");
            }
        }
        let values = self.job.command.into_iter().map(|placed| placed.value);
        Some(Kind {
            name: self.name?,
            sha256,
            runtime: self.runtime,
            metrics: self.metrics,
            command: values.collect(),
            env: self.job.env,
            ports: self.ports,
            ready,
            parameters: self.parameters,
            needs_model: self.needs_model,
        })
    }
}

static KIND: Table<KindDraft> = Table {
    name: "kind",
    keys: &[
        Key {
            name: "kind",
            required: true,
            about: "the name, which is that of the file",
            read: |report, entry, draft| {
                draft.name = read_scalar(report, "kind", &entry.value, fields::name);
            },
            schema: || json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}),
        },
        Key {
            name: "about",
            required: false,
            about: "what it is, for people",
            read: |report, entry, _| {
                read_text(report, "about", &entry.value, clean_text);
            },
            schema: || json!({"type": "string"}),
        },
        Key {
            name: "command",
            required: true,
            about: "the program and its arguments; `${NAME}` of a parameter, `${host}`, `${port_NAME}` and `${model}` are filled in",
            read: |report, entry, draft| command(report, entry, &mut draft.job),
            schema: || json!({"type": "array", "minItems": 1, "maxItems": ARGUMENTS_MAX, "items": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "image",
            required: false,
            about: "the image in which executors with containers run it; noted, and used by none of this version",
            read: |report, entry, _| {
                read_text(report, "image", &entry.value, clean_text);
            },
            schema: || json!({"type": "string"}),
        },
        Key {
            name: "env",
            required: false,
            about: "environment variables",
            read: |report, entry, draft| env(report, entry, &mut draft.job),
            schema: || json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "ports",
            required: true,
            about: "ports by name; auto takes one that is free",
            read: |report, entry, draft| service::ports(report, entry, &mut draft.ports),
            schema: service::ports_schema,
        },
        Key {
            name: "ready",
            required: false,
            about: "what must be answered before a service of this kind counts as ready",
            read: |report, entry, draft| draft.ready = service::ready_of(report, entry),
            schema: || service::READY.schema(),
        },
        Key {
            name: "runtime",
            required: false,
            about: "the adapter that reads its metrics, such as vllm",
            read: |report, entry, draft| {
                draft.runtime = read_text(report, "runtime", &entry.value, kind_name);
            },
            schema: || json!({"type": "string"}),
        },
        Key {
            name: "metrics",
            required: false,
            about: "path of its page of metrics",
            read: |report, entry, draft| {
                draft.metrics = read_text(report, "metrics", &entry.value, http_path);
            },
            schema: || json!({"type": "string", "pattern": "^/"}),
        },
        Key {
            name: "model",
            required: false,
            about: "whether a recipe must name weights: required, or none (which is usual)",
            read: |report, entry, draft| {
                let words = [("required", true), ("none", false)];
                let word = read_word(report, "model", &entry.value, &words);
                draft.needs_model = word.unwrap_or_default();
            },
            schema: || json!({"enum": ["required", "none"]}),
        },
        Key {
            name: "parameters",
            required: false,
            about: "what a recipe may set, by name",
            read: parameters,
            schema: || json!({"type": "object", "maxProperties": ENTRIES_MAX, "additionalProperties": PARAMETER.schema()}),
        },
    ],
};

fn parameters(report: &mut Report, entry: &Entry, draft: &mut KindDraft) {
    let bounds = (
        ENTRIES_MAX,
        "write it like `{slots: {type: int, default: 4}}`",
    );
    read_entries(report, "parameters", &entry.value, bounds, |report, one| {
        if let Err(fault) = rules::param_name(&one.key) {
            return report.fault(one.key_at, code::VALUE, fault);
        }
        if port_name(&one.key).is_ok() && one.key.starts_with("port_") {
            let message = format!("`{}` is the name of a port", shown(&one.key));
            report.add(one.key_at, code::CONFLICT, message, "choose another name");
        }
        let mut parameter = Parameter::default();
        PARAMETER.read(report, one.key_at, &one.value, &mut parameter);
        draft.parameters.insert(one.key.clone(), parameter);
    });
}

static PARAMETER: Table<Parameter> = Table {
    name: "parameters",
    keys: &[
        Key {
            name: "type",
            required: true,
            about: "int, number, bool or text",
            read: |report, entry, parameter| {
                let word = read_word(report, "type", &entry.value, &TYPES);
                parameter.of = word.unwrap_or_default();
            },
            schema: || json!({"enum": TYPES.map(|(name, _)| name)}),
        },
        Key {
            name: "default",
            required: false,
            about: "its value where a recipe is silent; without one a recipe must say it",
            read: |report, entry, parameter| {
                parameter.default = read_scalar(report, "default", &entry.value, param_value);
                parameter.default_at = Some(entry.value.at);
            },
            schema: || json!({"type": ["string", "number", "boolean"]}),
        },
        Key {
            name: "min",
            required: false,
            about: "smallest number",
            read: |report, entry, parameter| parameter.min = number(report, entry),
            schema: || json!({"type": "number"}),
        },
        Key {
            name: "max",
            required: false,
            about: "largest number",
            read: |report, entry, parameter| parameter.max = number(report, entry),
            schema: || json!({"type": "number"}),
        },
        Key {
            name: "choices",
            required: false,
            about: "the only values",
            read: |report, entry, parameter| {
                let bounds = (ENTRIES_MAX, "write it like `[none, aof]`");
                read_list(report, "choices", &entry.value, bounds, |report, item| {
                    let choice = read_scalar(report, "choices", item, param_value);
                    parameter
                        .choices
                        .extend(choice.map(|value| value.to_string()));
                });
            },
            schema: || json!({"type": "array", "minItems": 1, "items": {"type": ["string", "number", "boolean"]}}),
        },
        Key {
            name: "about",
            required: false,
            about: "what it is for, for people",
            read: |report, entry, parameter| {
                let about = read_text(report, "about", &entry.value, clean_text);
                parameter.about = about.unwrap_or_default();
            },
            schema: || json!({"type": "string"}),
        },
    ],
};

fn number(report: &mut Report, entry: &Entry) -> Option<String> {
    read_text(report, &entry.key, &entry.value, |text| {
        decimal(text).map(drop).ok_or_else(|| {
            let message = format!("`{}` is not a number", shown(text));
            Fault::new(message, "write it like `1`")
        })
    })
}
