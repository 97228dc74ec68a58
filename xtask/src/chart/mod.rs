//! `cargo xtask chart`: writes a Helm chart from the kustomize base and its components, into target/chart.
//!
//! | file | does |
//! |---|---|
//! | [`mod@template`] | a YAML tree with conditions, and its text as a template |
//! | [`compare`] | puts what a component changes under the component's switch |
//!
//! The base is rendered alone and with each component. What a component changes becomes a condition of the template, so that the
//! manifests are written once. Templates use `if`, `or`, `index` and `toJson` alone.

mod compare;
mod template;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use serde_yaml_ng::Value;

use crate::{cluster, sh};
use template::Node;

/// The chart's name, and that of its folder.
const NAME: &str = "podopsy";
/// Components that are no switches: a former name of another one, and one that changes what has values in the chart
/// (`image.pullPolicy`, `resources`).
const WITHOUT_SWITCH: [&str; 2] = ["named-rights", "kind"];
/// The namespace that the base sets; in the chart it is the release's.
const NAMESPACE: &str = "podopsy";
/// Where values replace what the base has: the path in the DaemonSet's pod, and the name of the value.
const VALUES: [(&[&str], &str); 4] = [
    (&["nodeSelector"], "nodeSelector"),
    (&["tolerations"], "tolerations"),
    (&["containers", "agent", "resources"], "resources"),
    (&["containers", "agent", "imagePullPolicy"], "image.pullPolicy"),
];

/// An object, by kind and name.
type Objects = BTreeMap<(String, String), Value>;

/// The command: writes the chart, and returns its folder.
pub fn run() -> Result<PathBuf> {
    cluster::ensure_kubectl()?;
    let out = sh::root().join("target/chart").join(NAME);
    write(&out)?;
    sh::progress(format_args!("{}: helm install podopsy {0} -n podopsy", out.display()));
    Ok(out)
}

/// Writes the chart into a folder, whose content is replaced.
pub fn write(out: &Path) -> Result<()> {
    let base = render(&[])?;
    let mut chart: BTreeMap<(String, String), Node> = BTreeMap::new();
    for (id, object) in &base {
        chart.insert(id.clone(), Node::from_yaml(object));
    }
    let components = components()?;
    for component in &components {
        for (id, object) in render(&[component])? {
            match (base.get(&id), chart.get_mut(&id)) {
                (Some(before), Some(node)) => compare::add(node, before, &object, component),
                (None, Some(node)) => compare::enable(node, component),
                _ => drop(chart.insert(id, Node::when(Node::from_yaml(&object), component))),
            }
        }
    }
    let daemonset = base.get(&("DaemonSet".to_owned(), "podopsy-agent".to_owned()));
    let daemonset = daemonset.context("the base has no DaemonSet podopsy-agent")?;
    for node in chart.values_mut() {
        compare::use_values(node, &VALUES);
    }
    let _ = fs::remove_dir_all(out);
    fs::create_dir_all(out.join("templates")).with_context(|| format!("make {}", out.display()))?;
    for ((kind, name), node) in chart.iter().filter(|((kind, _), _)| kind != "Namespace") {
        let text = node
            .text()
            .replace(&format!("namespace: \"{NAMESPACE}\""), "namespace: {{ toJson .Release.Namespace }}");
        let text = text
            .replace(&format!(":serviceaccount:{NAMESPACE}:"), ":serviceaccount:{{ .Release.Namespace }}:");
        put(out, &format!("templates/{}-{name}.yaml", kind.to_lowercase()), &text)?;
    }
    put(out, "templates/NOTES.txt", NOTES)?;
    put(out, "Chart.yaml", &chart_file()?)?;
    put(out, "values.yaml", &values(daemonset, &components)?)
}

const NOTES: &str = "\
The agent is privileged, so Pod Security admission has to allow that in its namespace:
  kubectl label namespace {{ .Release.Namespace }} pod-security.kubernetes.io/enforce=privileged
Then: kubectl -n {{ .Release.Namespace }} exec ds/podopsy-agent -- /podopsy doctor
";

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn chart_file() -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let about = "Flight recorder and autopsy kit for Kubernetes nodes";
    Ok(serde_yaml_ng::to_string(&json!({
        "apiVersion": "v2", "name": NAME, "description": about, "type": "application",
        "version": version, "appVersion": version,
    }))?)
}

/// The values: what the base has, and a switch for each component, all off.
fn values(daemonset: &Value, components: &[String]) -> Result<String> {
    let pod = &daemonset["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let image = container["image"].as_str().context("an image")?;
    let (repository, tag) = image.rsplit_once(':').context("an image with a tag")?;
    let switches: BTreeMap<&str, bool> = components.iter().map(|name| (name.as_str(), false)).collect();
    let text = serde_yaml_ng::to_string(&json!({
        "image": { "repository": repository, "tag": tag, "pullPolicy": container["imagePullPolicy"] },
        "nodeSelector": pod["nodeSelector"],
        "tolerations": pod["tolerations"],
        "resources": container["resources"],
        // More variables of the agent; one that is here wins over that of a component.
        "extraEnv": [],
        "components": switches,
    }))?;
    Ok(format!(
        "# Generated from manifests/ by `cargo xtask chart`. manifests/README.md describes the components.\n{text}"
    ))
}

/// The names of the components that are switches.
fn components() -> Result<Vec<String>> {
    let folder = sh::root().join("manifests/components");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry?.file_name().into_string().ok().context("a component's name is text")?;
        names.extend((!WITHOUT_SWITCH.contains(&name.as_str())).then_some(name));
    }
    names.sort();
    Ok(names)
}

/// Renders the base with these components.
pub fn render(components: &[&str]) -> Result<Objects> {
    let manifests = sh::root().join("manifests");
    // Beside the components: kustomize takes relative paths alone, and reads below the folder's own root.
    static RENDERED: AtomicU32 = AtomicU32::new(0);
    let number = RENDERED.fetch_add(1, Ordering::Relaxed);
    let folder = sh::root().join("target/chart").join(format!(".kustomize-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let up = "../../../manifests";
    let listed: Vec<String> = components.iter().map(|name| format!("{up}/components/{name}")).collect();
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": NAMESPACE,
        "resources": [format!("{up}/base")], "components": listed,
    });
    put(&folder, "kustomization.yaml", &kustomization.to_string())?;
    let text = sh::capture(Command::new(cluster::newer_kubectl()?).arg("kustomize").arg(&folder));
    let _ = fs::remove_dir_all(&folder);
    let text = text.with_context(|| format!("render {}", manifests.display()))?;
    let mut objects = Objects::new();
    for document in text.split("\n---\n") {
        let object: Value = serde_yaml_ng::from_str(document).context("kubectl writes YAML")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        objects.insert((text(&object["kind"]), text(&object["metadata"]["name"])), object);
    }
    ensure!(objects.len() > 2, "kubectl rendered {} objects", objects.len());
    Ok(objects)
}
