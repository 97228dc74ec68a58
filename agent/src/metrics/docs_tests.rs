//! Compares the metric families with `docs/metrics.md`.

use super::Metrics;

#[test]
fn every_family_is_documented() {
    let docs = include_str!("../../../docs/metrics.md");
    let state_dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::default();
    metrics.set_state_dir(state_dir.path());
    let families = metrics.families();
    assert!(families.len() > 25, "only {} families", families.len());
    let missing: Vec<&str> = families
        .iter()
        .map(|family| family.name)
        .filter(|name| !docs.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
}
