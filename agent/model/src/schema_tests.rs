//! `docs/schema/` is generated from the types: `UPDATE_SCHEMAS=1 cargo test -p podopsy-model schema_tests`.

use std::path::Path;

use schemars::{Schema, schema_for};

use crate::{Event, PodIncident};

fn schemas() -> [(&'static str, Schema); 2] {
    [("event.json", schema_for!(Event)), ("pod-incident.json", schema_for!(PodIncident))]
}

#[test]
fn the_schemas_in_the_documentation_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema");
    for (name, schema) in schemas() {
        let path = folder.join(name);
        let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON") + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::create_dir_all(&folder).expect("the folder of the schemas");
            std::fs::write(&path, &text).expect("write a schema");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == text,
            "docs/schema/{name} is stale: UPDATE_SCHEMAS=1 cargo test -p podopsy-model schema_tests"
        );
    }
}
