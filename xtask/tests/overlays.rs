//! What the overlays and components add agrees with the agent, the base and each other. tests/manifests.rs is about the base.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;
use xtask::sh;

fn manifests() -> PathBuf {
    sh::root().join("manifests")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = sh::root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first document of a file below manifests/.
fn yaml(path: &str) -> Value {
    let text = read(manifests().join(path));
    let first = text.split("\n---\n").next().expect("split gives one");
    serde_yaml_ng::from_str(first).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(manifests().join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The variables that components give to the agent, with the component.
fn variables() -> Vec<(String, String, Value)> {
    let patched = |name: &String| manifests().join("components").join(name).join("daemonset.yaml").is_file();
    let of = |name: String| {
        let patch = yaml(&format!("components/{name}/daemonset.yaml"));
        let container = patch["spec"]["template"]["spec"]["containers"][0].clone();
        let variable =
            |it: &Value| (name.clone(), it["name"].as_str().unwrap().to_owned(), it["value"].clone());
        list(&container["env"]).iter().map(variable).collect::<Vec<_>>()
    };
    names("components").into_iter().filter(patched).flat_map(of).collect()
}

#[test]
fn every_overlay_and_component_has_a_line_in_the_readme() {
    let page = read("manifests/README.md");
    for folder in ["overlays", "components"] {
        for name in names(folder) {
            assert!(
                page.contains(&format!("`{folder}/{name}`")),
                "manifests/README.md lacks `{folder}/{name}`"
            );
        }
    }
}

#[test]
fn every_component_is_in_an_overlay_or_the_readme_says_how_to_use_it() {
    // A token and a group of users are the reader's; the last is a former name.
    let without = ["metrics-token", "fleet-user", "named-rights"];
    let mut used: BTreeSet<String> = without.map(str::to_owned).into();
    let kustomizations = |folder: &'static str| {
        names(folder).into_iter().map(move |name| yaml(&format!("{folder}/{name}/kustomization.yaml")))
    };
    for it in kustomizations("overlays").chain(kustomizations("components")) {
        let named = list(&it["components"]).iter().filter_map(Value::as_str);
        used.extend(named.filter_map(|path| path.rsplit('/').next()).map(str::to_owned));
    }
    assert_eq!(names("components").difference(&used).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn every_variable_of_a_component_is_a_setting_of_the_agent() {
    let docs = [read("docs/agent.md"), read("docs/exports.md")].concat();
    let variables = variables();
    assert!(variables.len() >= 8, "{variables:?}");
    for (component, variable, _) in variables {
        let setting = variable.strip_prefix("PODOPSY_").expect("a setting").to_lowercase().replace('_', "-");
        assert!(docs.contains(&format!("`{setting}`")), "{component}: {variable} is no setting of the agent");
    }
}

#[test]
fn the_sockets_of_runtimes_are_among_those_that_the_agent_tries() {
    let code = read("agent/runtime/src/client.rs");
    let sockets: Vec<_> =
        variables().into_iter().filter(|(_, name, _)| name == "PODOPSY_CRI_SOCKET").collect();
    assert!(sockets.len() >= 4, "{sockets:?}");
    for (component, _, path) in sockets {
        let path = path.as_str().unwrap();
        assert!(code.contains(&format!("    \"{path}\",\n")), "{component}: {path}");
    }
}

#[test]
fn exports_go_to_the_collectors_service_and_its_configuration_has_what_is_sent() {
    let url = variables().into_iter().find(|(_, name, _)| name == "PODOPSY_OTLP_URL").expect("a URL").2;
    let text = read(manifests().join("overlays/otel-collector/collector.yaml"));
    let objects: Vec<Value> =
        text.split("\n---\n").map(|one| serde_yaml_ng::from_str(one).unwrap()).collect();
    let [deployment, service] = &objects[..] else { panic!("two objects") };
    let name = service["metadata"]["name"].as_str().unwrap();
    let port = &service["spec"]["ports"][0];
    let namespace = yaml("overlays/otel-collector/kustomization.yaml")["namespace"].clone();
    assert_eq!(
        url,
        format!("http://{name}.{}.svc:{}", namespace.as_str().unwrap(), port["port"].as_u64().unwrap())
            .as_str()
    );
    let template = &deployment["spec"]["template"];
    assert_eq!(
        service["spec"]["selector"]["app.kubernetes.io/name"],
        template["metadata"]["labels"]["app.kubernetes.io/name"]
    );
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["ports"][0]["name"], port["targetPort"]);

    let config = yaml("overlays/otel-collector/collector-config.yaml");
    let listens = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"].as_str().unwrap();
    assert!(listens.ends_with(&format!(":{}", container["ports"][0]["containerPort"].as_u64().unwrap())));
    let probe = container["readinessProbe"]["httpGet"]["port"].as_u64().unwrap();
    let health = config["extensions"]["health_check"]["endpoint"].as_str().unwrap();
    assert!(health.ends_with(&format!(":{probe}")), "{health}");
    // Each pipeline names parts that are configured; and both signals have one.
    let pipelines = config["service"]["pipelines"].as_mapping().unwrap();
    let signals: Vec<_> = pipelines.keys().filter_map(Value::as_str).collect();
    assert_eq!(signals, ["logs", "metrics"]);
    for pipeline in pipelines.values() {
        for part in ["receivers", "processors", "exporters"] {
            for name in list(&pipeline[part]) {
                assert!(config[part].get(name).is_some(), "{part}: {name:?}");
            }
        }
    }
}

#[test]
fn the_service_monitor_finds_the_agents_by_the_headless_service() {
    let service = yaml("components/service-monitor/service.yaml");
    let monitor = yaml("components/service-monitor/servicemonitor.yaml");
    let daemonset = yaml("base/daemonset.yaml");
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["selector"], daemonset["spec"]["selector"]["matchLabels"]);
    let wanted = monitor["spec"]["selector"]["matchLabels"].as_mapping().unwrap();
    assert!(wanted.iter().all(|(key, value)| service["metadata"]["labels"][key] == *value));
    let port = &service["spec"]["ports"][0];
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], port["name"]);
    let container = &daemonset["spec"]["template"]["spec"]["containers"][0]["ports"][0];
    assert_eq!((&port["targetPort"], &port["port"]), (&container["name"], &container["containerPort"]));
    // What both monitors say of the same page.
    let pods = yaml("components/prometheus-operator/podmonitor.yaml");
    let (a, b) = (&monitor["spec"]["endpoints"][0], &pods["spec"]["podMetricsEndpoints"][0]);
    for field in ["path", "interval", "honorLabels", "relabelings"] {
        assert_eq!(a[field], b[field], "{field}");
    }
    assert_eq!(monitor["spec"]["jobLabel"], pods["spec"]["jobLabel"]);
}

#[test]
fn openshifts_constraint_allows_what_the_daemon_set_asks_for_to_its_account_alone() {
    let scc = yaml("components/openshift/scc.yaml");
    let pod = yaml("base/daemonset.yaml")["spec"]["template"]["spec"].clone();
    let security = &pod["containers"][0]["securityContext"];
    assert_eq!(scc["allowHostPID"], pod["hostPID"]);
    assert_eq!(scc["allowPrivilegedContainer"], security["privileged"]);
    assert_eq!(scc["readOnlyRootFilesystem"], security["readOnlyRootFilesystem"]);
    assert_eq!(scc["allowHostDirVolumePlugin"], true);
    for refused in ["allowHostIPC", "allowHostNetwork", "allowHostPorts"] {
        assert_eq!(scc[refused], false, "{refused}");
    }
    let account = yaml("base/serviceaccount.yaml")["metadata"]["name"].clone();
    let namespace = yaml("base/kustomization.yaml")["namespace"].clone();
    let user = format!("system:serviceaccount:{}:{}", namespace.as_str().unwrap(), account.as_str().unwrap());
    assert_eq!(list(&scc["users"]), [Value::from(user)]);
    assert!(list(&scc["groups"]).is_empty());
    // Each kind of volume that the base or a component mounts.
    let allowed: BTreeSet<&str> = list(&scc["volumes"]).iter().filter_map(Value::as_str).collect();
    let parts = ["base", "components/kubernetes-events", "components/metrics-token"];
    for part in parts {
        let volumes = yaml(&format!("{part}/daemonset.yaml"))["spec"]["template"]["spec"]["volumes"].clone();
        for volume in list(&volumes) {
            let mut kinds = volume.as_mapping().unwrap().keys().filter_map(Value::as_str);
            assert!(kinds.any(|kind| allowed.contains(kind)), "{part}: {volume:?}");
        }
    }
}

#[test]
fn a_file_for_kubectl_debug_has_only_fields_that_it_takes() {
    // kubectl refuses these in --custom, and the API server refuses resources, ports and probes of ephemeral containers.
    for name in names("ephemeral") {
        let it = yaml(&format!("ephemeral/{name}"));
        let fields: Vec<_> = it.as_mapping().unwrap().keys().filter_map(Value::as_str).collect();
        assert_eq!(fields, ["securityContext"], "{name}");
        assert_eq!(
            (&it["securityContext"]["runAsUser"], &it["securityContext"]["runAsNonRoot"]),
            (&0.into(), &false.into())
        );
    }
    let dns = yaml("ephemeral/dns.yaml")["securityContext"]["capabilities"].clone();
    assert_eq!((&dns["drop"][0], list(&dns["add"]).len()), (&"ALL".into(), 2));
}

#[test]
fn what_misbehaves_on_purpose_is_limited_and_has_a_namespace_of_its_own() {
    let kustomization = yaml("overlays/chaos/kustomization.yaml");
    assert_ne!(kustomization["namespace"], yaml("base/kustomization.yaml")["namespace"]);
    let image = kustomization["images"][0]["name"].clone();
    let programs = std::fs::read_dir(sh::root().join("tests/victims/src/bin")).unwrap();
    let programs: BTreeSet<String> = programs
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let deployments = list(&kustomization["resources"]).iter().filter_map(Value::as_str);
    for file in deployments.filter(|file| *file != "namespace.yaml") {
        let container =
            yaml(&format!("overlays/chaos/{file}"))["spec"]["template"]["spec"]["containers"][0].clone();
        assert_eq!(container["image"], image, "{file}");
        let limits = &container["resources"]["limits"];
        assert!(limits["memory"].is_string() && limits["cpu"].is_string(), "{file}");
        assert!(programs.contains(container["command"][0].as_str().unwrap()), "{file}: {container:?}");
    }
}
