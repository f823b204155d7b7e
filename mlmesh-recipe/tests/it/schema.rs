//! The schema and the parser know the same keys.

use mlmesh_recipe::{parse, schema};
use serde_json::Value;

/// Each object of the schema with fixed keys, and a recipe that puts a made-up
/// key there.
const PLACES: &[(&str, &str)] = &[
    ("/properties/experiment", "experiment: {zz: 1}"),
    (
        "/properties/experiment/properties/environment/oneOf/1",
        "experiment: {environment: {zz: 1}}",
    ),
    (
        "/properties/experiment/properties/datasets/items",
        "experiment: {datasets: [{zz: 1}]}",
    ),
    (
        "/properties/experiment/properties/resources",
        "experiment: {resources: {zz: 1}}",
    ),
    (
        "/properties/experiment/properties/tolerance/additionalProperties",
        "experiment: {tolerance: {a: {zz: 1}}}",
    ),
    (
        "/properties/experiment/properties/on_finish",
        "experiment: {on_finish: {zz: 1}}",
    ),
    ("/properties/service", "service: {zz: 1}"),
    (
        "/properties/service/properties/ready",
        "service: {ready: {zz: 1}}",
    ),
    (
        "/properties/service/properties/environment/oneOf/1",
        "service: {environment: {zz: 1}}",
    ),
    (
        "/properties/service/properties/datasets/items",
        "service: {datasets: [{zz: 1}]}",
    ),
    (
        "/properties/service/properties/resources",
        "service: {resources: {zz: 1}}",
    ),
    (
        "/properties/service/properties/on_finish",
        "service: {on_finish: {zz: 1}}",
    ),
];

#[test]
fn the_schemas_keys_are_the_parsers() {
    let schema = schema();
    for (pointer, recipe) in PLACES {
        let object = schema.pointer(pointer).expect("the place is in the schema");
        let mut known: Vec<&String> = object["properties"].as_object().unwrap().keys().collect();
        let errors = parse("r", recipe).unwrap_err();
        let hint = &errors
            .errors
            .iter()
            .find(|error| error.code == "recipe_unknown_key")
            .expect("the made-up key is refused")
            .hint;
        let mut read: Vec<&str> = hint.split('`').skip(1).step_by(2).collect();
        known.sort();
        read.sort_unstable();
        assert_eq!(known, read, "{pointer}");
        assert_eq!(
            object["additionalProperties"],
            Value::Bool(false),
            "{pointer}"
        );
    }
}

#[test]
fn every_place_with_fixed_keys_is_compared() {
    fn fixed(value: &Value, count: &mut usize) {
        match value {
            Value::Object(fields) => {
                let closed = fields.get("additionalProperties") == Some(&Value::Bool(false));
                *count += usize::from(closed);
                fields.values().for_each(|value| fixed(value, count));
            }
            Value::Array(items) => items.iter().for_each(|value| fixed(value, count)),
            _ => {}
        }
    }
    let mut count = 0;
    fixed(&schema(), &mut count);
    // The top, `zip`, `random` and two forms of a range have keys of their own.
    let own = 4;
    assert_eq!(count, PLACES.len() + own);
}

#[test]
fn every_key_is_described_and_the_dialect_is_named() {
    let schema = schema();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    let keys = schema.pointer("/properties/experiment/properties").unwrap();
    for (key, value) in keys.as_object().unwrap() {
        assert!(
            value["description"]
                .as_str()
                .is_some_and(|text| text.len() > 10),
            "{key}"
        );
    }
    assert_eq!(
        schema.pointer("/properties/experiment/required").unwrap(),
        &serde_json::json!(["name", "command"])
    );
}
