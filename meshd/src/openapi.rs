//! The OpenAPI 3.1 document, made from the table of routes and the schemas of the
//! DTOs, so that it cannot say what the server does not do.

use mlmesh_api::ErrorBody;
use mlmesh_model::PHASES;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::needs::Needs;
use crate::routes::{Answer, Body, Param, ParamKind, Route, routes};

/// The document.
pub(crate) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let error = generator.subschema_for::<ErrorBody>();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes() {
        let operation = operation(&route, &mut generator, error.as_value());
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "mlmesh",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Queue and run experiments. Every error has the body `ErrorBody`; codes are listed in docs/errors.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "an API key; `owner.key` in the data directory holds one",
                },
            },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator, error: &Value) -> Value {
    let mut parameters: Vec<Value> = path_parameters(route.path);
    parameters.extend(route.query.iter().map(query_parameter));
    let mut responses = Map::new();
    let (status, answer) = answer(&route.answer, generator);
    responses.insert(status.to_owned(), answer);
    let refusal = json!({
        "description": "refused, or failed",
        "content": {"application/json": {"schema": error}},
    });
    responses.insert("default".to_owned(), refusal);
    let name: String = route
        .path
        .split(['/', '.', '{', '}'])
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("_");
    let mut operation = json!({
        "operationId": format!("{}_{name}", route.method.as_str().to_ascii_lowercase()),
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
    });
    operation["description"] = json!(needs_text(route.needs));
    if route.needs == Needs::Nothing {
        operation["security"] = json!([]);
    }
    if let Some(body) = request_body(&route.body, generator) {
        operation["requestBody"] = body;
    }
    operation
}

/// Which permission a key needs.
fn needs_text(needs: Needs) -> String {
    match needs {
        Needs::Nothing => "needs no key".to_owned(),
        Needs::Key => "needs the key of any user".to_owned(),
        Needs::May(own) => format!("needs the permission `{own}`"),
        Needs::Own(own, others) => {
            format!("needs the permission `{own}`; for what is somebody else's, `{others}`")
        }
        Needs::MayOrAttempt(own, _) => {
            format!("needs the permission `{own}`, or the token of an attempt of this run")
        }
        Needs::Attempt(_) => "needs the token of an attempt of this run".to_owned(),
    }
}

fn request_body(body: &Body, generator: &mut SchemaGenerator) -> Option<Value> {
    match body {
        Body::None => None,
        Body::Json {
            schema,
            required,
            bytes_max,
        } => Some(json!({
            "required": required,
            "description": format!("at most {bytes_max} bytes"),
            "content": {"application/json": {"schema": schema(generator)}},
        })),
        Body::Binary { help, bytes_max } => Some(json!({
            "required": true,
            "description": format!("{help}; at most {bytes_max} bytes"),
            "content": {"application/octet-stream": {}},
        })),
    }
}

fn answer(answer: &Answer, generator: &mut SchemaGenerator) -> (&'static str, Value) {
    match answer {
        Answer::Json(schema) => (
            "200",
            json!({
                "description": "done",
                "content": {"application/json": {"schema": schema(generator)}},
            }),
        ),
        Answer::Binary(help) => (
            "200",
            json!({"description": help, "content": {"application/octet-stream": {}}}),
        ),
        Answer::Text(kind) => (
            "200",
            json!({"description": "done", "content": {*kind: {"schema": {"type": "string"}}}}),
        ),
        Answer::Nothing => ("204", json!({"description": "done"})),
    }
}

fn path_parameters(path: &str) -> Vec<Value> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            let (schema, help) = match name {
                "run" => (
                    json!({"type": "string"}),
                    "an id, a unique prefix of one, or `@last`",
                ),
                "object" => (
                    json!({"type": "string", "pattern": "^(sha256:)?[0-9a-f]{64}$"}),
                    "64 hex digits",
                ),
                "name" if path.starts_with("/v1/secrets/") => (
                    json!({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}),
                    "name of a variable",
                ),
                _ => (json!({"type": "string", "minLength": 1}), "as registered"),
            };
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": help,
                "schema": schema,
            })
        })
        .collect()
}

fn query_parameter(param: &Param) -> Value {
    let number = |max: u64| json!({"type": "integer", "minimum": 0, "maximum": max});
    let (schema, required) = match param.kind {
        ParamKind::Number(max) => (number(max), false),
        ParamKind::NumberRequired(max) => (number(max), true),
        ParamKind::Owner => (
            json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}),
            false,
        ),
        ParamKind::RunName | ParamKind::Text => (json!({"type": "string"}), false),
        ParamKind::Texts => (json!({"type": "array", "items": {"type": "string"}}), false),
        ParamKind::Words(words) => (json!({"type": "string", "enum": words}), false),
        ParamKind::Phases => {
            let names = PHASES.map(|phase| phase.as_str());
            (
                json!({"type": "array", "items": {"type": "string", "enum": names}}),
                false,
            )
        }
    };
    json!({
        "name": param.name,
        "in": "query",
        "required": required,
        "description": param.help,
        "schema": schema,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of the document leads somewhere.
    #[test]
    fn references_are_all_defined() {
        fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(target)) = members.get("$ref") {
                        found.push(target);
                    }
                    members.values().for_each(|member| walk(member, found));
                }
                Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        walk(&document, &mut found);
        assert!(found.len() > 30, "{found:?}");
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn every_route_is_in_the_document() {
        let document = document();
        for route in routes() {
            let method = route.method.as_str().to_ascii_lowercase();
            let operation = &document["paths"][route.path][method];
            assert!(
                operation["responses"]["default"].is_object(),
                "{}",
                route.path
            );
        }
    }
}
