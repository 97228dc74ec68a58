//! `docs/schema/mcp-tools.json` is generated from the types of the tools: `UPDATE_SCHEMAS=1 cargo test -p podopsy mcp::schema_tests`.

use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::tools::{
    Autopsy, DnsSummary, Explain, GrowthTop, ListIncidents, NAMES, ProfileTop, Restarts, Timeline, Tool,
};

fn definition<T: Tool + JsonSchema>() -> Value
where
    T::Answer: JsonSchema,
{
    let generator = |settings: SchemaSettings| SchemaGenerator::new(settings);
    let mut input = generator(SchemaSettings::draft2020_12()).into_root_schema_for::<T>().to_value();
    let output = SchemaSettings::draft2020_12().for_serialize();
    let mut output = generator(output).into_root_schema_for::<T::Answer>().to_value();
    let description = input["description"].take();
    for schema in [&mut input, &mut output] {
        let fields = schema.as_object_mut().expect("a schema is an object");
        fields.retain(|name, _| !["$schema", "description", "title"].contains(&name.as_str()));
        plain(schema);
    }
    json!({
        "name": T::NAME,
        "title": T::TITLE,
        "description": description.as_str().expect("a tool has a description").replace('\n', " "),
        "inputSchema": input,
        "outputSchema": output,
        "annotations": {
            "title": T::TITLE,
            "readOnlyHint": true,
            "destructiveHint": false,
            "idempotentHint": true,
            "openWorldHint": false,
        },
    })
}

/// Leaves out what validators of other versions of JSON Schema reject: formats that are none of its own. Descriptions are one line.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| name != "format" || value == "date-time");
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            fields.values_mut().for_each(plain);
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(plain),
        _ => {}
    }
}

fn definitions() -> Value {
    json!([
        definition::<ListIncidents>(),
        definition::<Autopsy>(),
        definition::<Timeline>(),
        definition::<ProfileTop>(),
        definition::<GrowthTop>(),
        definition::<DnsSummary>(),
        definition::<Restarts>(),
        definition::<Explain>(),
    ])
}

#[test]
fn every_tool_that_can_be_called_is_listed() {
    let listed: Vec<Value> =
        definitions().as_array().expect("a list").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(listed, NAMES);
    assert_eq!(super::tools::definitions()[0]["name"], NAMES[0], "docs/schema/mcp-tools.json is built in");
}

#[test]
fn the_definitions_of_the_tools_are_those_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema/mcp-tools.json");
    let text = serde_json::to_string_pretty(&definitions()).expect("definitions are JSON") + "\n";
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::write(&path, &text).expect("write the definitions");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/schema/mcp-tools.json is stale: UPDATE_SCHEMAS=1 cargo test -p podopsy mcp::schema_tests"
    );
}
