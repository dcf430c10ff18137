//! The schemas of places in a document: JSON pointers, and tables with them. Only what a configuration may contain.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A JSON pointer, or a table with one of its keys.
pub(super) struct Place;

impl JsonSchema for Place {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Place".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string"},
            {"type": "object", "required": ["value"], "additionalProperties": false,
             "properties": {"value": {"type": ["string", "integer", "boolean"]}}},
            {"type": "object", "required": ["pointer"], "additionalProperties": false,
             "properties": {"pointer": {"type": "string"}, "none": {"type": "string"}, "unit": {"enum": ["major", "minor"]}}}
        ]})
    }
}

/// Where an id is, and what precedes it.
pub(super) struct IdPlace;

impl JsonSchema for IdPlace {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IdPlace".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({"type": "string"});
        json_schema!({"anyOf": [
            text,
            {"type": "object", "required": ["value"], "additionalProperties": false,
             "properties": {"value": {"type": ["string", "integer", "boolean"]}, "prefix": text}},
            {"type": "object", "minProperties": 1, "additionalProperties": false,
             "properties": {"pointer": text, "none": text, "prefix": text}}
        ]})
    }
}

/// Where it is said what happened to the order, and which values say that it was cancelled.
pub(super) struct EventPlace;

impl JsonSchema for EventPlace {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EventPlace".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string"},
            {"type": "object", "required": ["pointer", "cancelled"], "additionalProperties": false,
             "properties": {"pointer": {"type": "string"}, "cancelled": {"anyOf": [
                {"const": true}, {"type": "array", "minItems": 1, "maxItems": 16, "items": {"type": "string"}}
             ]}}}
        ]})
    }
}

/// Several JSON pointers, whose amounts are added up.
pub(super) struct Places;

impl JsonSchema for Places {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Places".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let pointers = json_schema!({"anyOf": [
            {"type": "string"}, {"type": "array", "minItems": 1, "maxItems": 16, "items": {"type": "string"}}
        ]});
        json_schema!({"anyOf": [
            pointers,
            {"type": "object", "required": ["pointer"], "additionalProperties": false,
             "properties": {"pointer": pointers, "unit": {"enum": ["major", "minor"]}}}
        ]})
    }
}
