//! Every overlay of manifests/, as kubectl renders it, against the types of Kubernetes 1.37 and of the custom resources; what no
//! API server here can check: the cluster of the tests is of version 1.20, without custom resources.
//!
//! The tests need `cargo xtask setup test`, which downloads kubectl and the crates that the types are read from.

mod types;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_yaml_ng::Value;
use types::Schemas;
use xtask::{cluster, sh};

/// Kinds without a published crate: their fields are checked by hand, in tests/overlays.rs.
const UNKNOWN: [(&str, &str); 1] = [("security.openshift.io/v1", "SecurityContextConstraints")];

fn manifests() -> PathBuf {
    sh::root().join("manifests")
}

fn render(folder: &Path) -> String {
    let kubectl = cluster::newer_kubectl().expect("the cache folder");
    assert!(kubectl.is_file(), "{} is missing: run `cargo xtask setup test`", kubectl.display());
    sh::capture(Command::new(kubectl).arg("kustomize").arg(folder)).expect("kubectl kustomize")
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|one| serde_yaml_ng::from_str(one).expect("YAML")).collect()
}

fn label(object: &Value) -> (&str, &str) {
    (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default())
}

fn folders(below: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(manifests().join(below)).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
#[ignore = "needs `cargo xtask setup test`"]
fn every_overlay_is_valid_for_kubernetes_and_the_custom_resources() {
    let schemas = Schemas::get();
    let mut wrong = Vec::new();
    let mut kinds = std::collections::BTreeSet::new();
    for folder in [folders("overlays"), vec![manifests().join("base")]].concat() {
        let text = render(&folder);
        for object in documents(&text) {
            let (version, kind) = label(&object);
            kinds.insert(kind.to_owned());
            let errors = match UNKNOWN.contains(&(version, kind)) {
                true => Vec::new(),
                false => schemas.errors(&object),
            };
            wrong.extend(errors.into_iter().map(|error| format!("{}: {kind}: {error}", folder.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for kind in
        ["DaemonSet", "PodMonitor", "ServiceMonitor", "PrometheusRule", "DNSChaos", "StressChaos", "PodChaos"]
    {
        assert!(kinds.contains(kind), "no overlay has a {kind}: {kinds:?}");
    }
}

#[test]
#[ignore = "needs `cargo xtask setup test`"]
fn each_component_is_valid_beside_the_base() {
    let schemas = Schemas::get();
    for component in folders("components") {
        let own = tempfile::tempdir().expect("a folder");
        let up = "../".repeat(own.path().components().count() - 1);
        let path = |path: &Path| format!("{up}{}", path.display().to_string().trim_start_matches('/'));
        let text = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: ['{}']\ncomponents: ['{}']\n",
            path(&manifests().join("base")),
            path(&component)
        );
        std::fs::write(own.path().join("kustomization.yaml"), text).expect("write it");
        for object in documents(&render(own.path())) {
            let is_known = !UNKNOWN.contains(&label(&object));
            let errors = if is_known { schemas.errors(&object) } else { Vec::new() };
            assert!(errors.is_empty(), "{}: {errors:#?}", component.display());
        }
    }
}

#[test]
#[ignore = "needs `cargo xtask setup test`"]
fn a_file_for_kubectl_debug_is_a_part_of_a_container() {
    let schemas = Schemas::get();
    for file in folders("ephemeral") {
        let mut container: Value =
            serde_yaml_ng::from_str(&std::fs::read_to_string(&file).expect("a file")).expect("YAML");
        container["name"] = "podopsy".into();
        let errors = schemas.errors_in_container(&container);
        assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
    }
}

/// Each damage to a manifest, and the beginning of the error that it has to cause.
#[test]
#[ignore = "needs `cargo xtask setup test`"]
fn damaged_manifests_are_refused() {
    let schemas = Schemas::get();
    let daemonset =
        documents(&render(&manifests().join("base"))).into_iter().find(|one| label(one).1 == "DaemonSet");
    let text = serde_yaml_ng::to_string(&daemonset.expect("a DaemonSet")).expect("YAML");
    let chaos = render(&manifests().join("overlays/chaos-mesh"));
    let monitors = render(&manifests().join("overlays/prometheus-operator"));
    for (text, from, to, error) in [
        (&text, "hostPID: true", "hostPid: true", "spec.template.spec.hostPid: unknown"),
        (&text, "hostPID: true", "hostPID: 'yes'", "spec.template.spec.hostPID: not a bool"),
        (
            &text,
            "terminationGracePeriodSeconds: 15",
            "terminationGracePeriodSeconds: 15s",
            "spec.template.spec.terminationGracePeriodSeconds: not an integer",
        ),
        (
            &text,
            "- name: PODOPSY_STATE_DIR",
            "- nam: PODOPSY_STATE_DIR",
            "spec.template.spec.containers[0].env[1].nam: unknown",
        ),
        (
            &text,
            "value: /var/lib/podopsy",
            "value: 7",
            "spec.template.spec.containers[0].env[1].value: not a string",
        ),
        (&text, "  selector:\n", "  selectors:\n", "spec.selectors: unknown"),
        (&text, "apps/v1", "apps/v2", "apps/v2 DaemonSet: unknown"),
        (&chaos, "action: error", "action: fail", "spec.action: none of"),
        (&chaos, "mode: one", "modes: one", "spec.mode: missing"),
        (&chaos, "workers: 1", "workers: one", "spec.stressors.cpu.workers: not an integer"),
        (
            &monitors,
            "honorLabels: true",
            "honourLabels: true",
            "spec.podMetricsEndpoints[0].honourLabels: unknown",
        ),
        (&monitors, "- alert: PodopsyDown", "- alarm: PodopsyDown", "spec.groups[2].rules[0].alarm: unknown"),
    ] {
        assert!(text.contains(from), "{from}");
        let damaged = text.replacen(from, to, if to.contains("workers") { 2 } else { 1 });
        let errors: Vec<String> = documents(&damaged).iter().flat_map(|one| schemas.errors(one)).collect();
        assert!(errors.iter().any(|found| found.starts_with(error)), "{to}: {errors:#?}");
    }
}
