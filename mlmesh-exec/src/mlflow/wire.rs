//! What a client asks and what it is told: requests as JSON objects that follow
//! protobuf's rules, and refusals with the codes and words of MLflow's own server.
//!
//! Reads values only; which names a request has is the business of those who ask.

use serde_json::{Map, Value};

/// A refusal: `{"error_code": …, "message": …}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct Fault {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::of(400, "INVALID_PARAMETER_VALUE", message)
    }

    pub(super) fn absent(message: impl Into<String>) -> Self {
        Self::of(404, "RESOURCE_DOES_NOT_EXIST", message)
    }

    pub(super) fn exists(message: impl Into<String>) -> Self {
        Self::of(400, "RESOURCE_ALREADY_EXISTS", message)
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::of(400, "BAD_REQUEST", message)
    }

    /// Something that the client may try again, which it does by itself.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::of(503, "TEMPORARILY_UNAVAILABLE", message)
    }

    /// A limit of ours. Not status 429, on which clients try again for minutes.
    pub(super) fn exhausted(message: impl Into<String>) -> Self {
        Self::of(400, "RESOURCE_EXHAUSTED", message)
    }

    pub(super) fn unknown(method: &str, path: &str) -> Self {
        let message = format!(
            "`{method} {path}` is not among what a run's own tracking answers\n\
             hint: set MLFLOW_TRACKING_URI in the recipe's `env` to use a server of your own"
        );
        Self::of(404, "ENDPOINT_NOT_FOUND", message)
    }

    pub(super) fn unauthorized() -> Self {
        let message = "the token of the run is missing or wrong\n\
                       hint: it stands in MLFLOW_TRACKING_TOKEN of the job";
        Self::of(401, "UNAUTHENTICATED", message)
    }

    fn of(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    pub(super) fn body(&self) -> Value {
        serde_json::json!({"error_code": self.code, "message": self.message})
    }
}

const SEE_DOCS: &str = "See the API docs for more information about request parameters.";

fn missing(name: &str) -> Fault {
    Fault::invalid(format!(
        "Missing value for required parameter '{name}'. {SEE_DOCS}"
    ))
}

pub(super) fn wrong(name: &str, value: &Value) -> Fault {
    let kind = match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    };
    let hint = format!(" Hint: Value was of type '{kind}'. {SEE_DOCS}");
    Fault::invalid(format!("{}{hint}", invalid_value(name, value)))
}

/// The words with which a value is refused; what follows says why.
pub(super) fn invalid_value(name: &str, value: &Value) -> String {
    format!("Invalid value {value} for parameter '{name}' supplied: ")
}

/// The fields of a request, or of one of its parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// `metrics[3].` before the names of a part.
    path: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn of(map: &'a Map<String, Value>) -> Self {
        Self { map, path: "" }
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn json(&self, name: &str) -> Option<&'a Value> {
        self.value(name)
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.named(name), other)),
        }
    }

    /// Absent and empty are the same to protobuf.
    pub(super) fn needed(&self, name: &str) -> Result<&'a str, Fault> {
        self.text(name)?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| missing(&self.named(name)))
    }

    /// The run that a request is about; old clients say `run_uuid`.
    pub(super) fn run(&self) -> Result<&'a str, Fault> {
        match self.text("run_id")?.filter(|text| !text.is_empty()) {
            Some(id) => Ok(id),
            None => self
                .text("run_uuid")?
                .filter(|text| !text.is_empty())
                .ok_or_else(|| missing("run_id")),
        }
    }

    /// Protobuf writes whole numbers as numbers or as text.
    pub(super) fn whole(&self, name: &str) -> Result<Option<i64>, Fault> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let number = match value {
            Value::Number(number) => number.as_i64().or_else(|| {
                let float = number.as_f64()?;
                (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
            }),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number
            .map(Some)
            .ok_or_else(|| wrong(&self.named(name), value))
    }

    pub(super) fn number(&self, name: &str) -> Result<f64, Fault> {
        let value = self.value(name).ok_or_else(|| missing(&self.named(name)))?;
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => number_of(text),
            _ => None,
        };
        number.ok_or_else(|| wrong(&self.named(name), value))
    }

    pub(super) fn list(&self, name: &str) -> Result<&'a [Value], Fault> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(wrong(&self.named(name), other)),
        }
    }

    /// Each part of a list, with the names that it has in refusals.
    pub(super) fn parts<T>(
        &self,
        name: &str,
        mut each: impl FnMut(Fields<'_>) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let list = self.list(name)?;
        let mut parts = Vec::with_capacity(list.len());
        let mut path = String::new();
        for (index, value) in list.iter().enumerate() {
            let Value::Object(map) = value else {
                return Err(wrong(name, value));
            };
            path.clear();
            path.push_str(name);
            path.push_str(&format!("[{index}]."));
            parts.push(each(Fields { map, path: &path })?);
        }
        Ok(parts)
    }

    /// The name of a field of this part, as refusals say it.
    pub(super) fn path_of(&self, name: &str) -> String {
        self.named(name)
    }
}

/// Protobuf's words for what JSON has no number for.
fn number_of(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        other => other.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

/// The same on the way back.
pub(super) fn number_value(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}
