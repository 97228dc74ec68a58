//! The manifests match the code and the image. They are parsed, not searched as text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;
use xtask::{image, sh};

fn yaml(name: &str) -> Value {
    let mut all = documents(&sh::root().join("manifests/base").join(name));
    assert_eq!(all.len(), 1, "{name}");
    all.remove(0)
}

fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let document = |text| serde_yaml_ng::from_str(text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.split("\n---\n").map(document).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value:?}"))
}

fn pod() -> Value {
    yaml("daemonset.yaml")["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    let pod = pod();
    assert_eq!(list(&pod["containers"]).len(), 1);
    pod["containers"][0].clone()
}

#[test]
fn every_mount_has_its_host_path_and_every_volume_is_mounted() {
    let (pod, container) = (pod(), container());
    let mounts: BTreeSet<_> = list(&container["volumeMounts"]).iter().map(|m| text(&m["name"])).collect();
    let volumes: BTreeSet<_> = list(&pod["volumes"]).iter().map(|v| text(&v["name"])).collect();
    assert_eq!(mounts, volumes);
    for volume in list(&pod["volumes"]) {
        assert!(text(&volume["hostPath"]["path"]).starts_with('/'), "{volume:?}");
        let mount = list(&container["volumeMounts"]).iter().find(|m| m["name"] == volume["name"]).unwrap();
        assert_eq!(mount["mountPath"], volume["hostPath"]["path"], "the agent looks where the host has it");
    }
}

#[test]
fn nothing_of_the_host_can_be_written_but_the_state() {
    let container = container();
    let state =
        list(&container["env"]).iter().find(|e| e["name"] == "PODOPSY_STATE_DIR").expect("a state folder");
    for mount in list(&container["volumeMounts"]) {
        assert_eq!(mount["readOnly"] == true, mount["mountPath"] != state["value"], "{mount:?}");
    }
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
}

#[test]
fn the_runtimes_socket_is_reached_without_a_mount() {
    // By /proc/1/root. A copy of /run would keep dead pods' root filesystems and network namespaces busy.
    let (pod, container) = (pod(), container());
    assert_eq!(pod["hostPID"], true);
    assert!(list(&container["volumeMounts"]).iter().all(|m| !text(&m["mountPath"]).starts_with("/run")));
}

#[test]
fn the_agent_is_allowed_what_it_does() {
    let (pod, container) = (pod(), container());
    assert_eq!(pod["hostPID"], true);
    assert_eq!(container["securityContext"]["privileged"], true);
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"][0]["operator"], "Exists");
    assert!(container["resources"]["limits"]["memory"].is_string());
    assert!(container["resources"]["limits"].get("cpu").is_none(), "a throttled reader loses events");
    let node = list(&container["env"]).iter().find(|e| e["name"] == "NODE_NAME").expect("NODE_NAME");
    assert_eq!(node["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
}

#[test]
fn image_and_command_are_those_that_xtask_builds() {
    let container = container();
    let image = &yaml("kustomization.yaml")["images"][0];
    assert_eq!(container["image"], image["name"], "kustomize replaces the image by this name");
    assert_eq!(format!("{}:{}", text(&image["newName"]), text(&image["newTag"])), image::DEFAULT_TAG);
    let dockerfile = std::fs::read_to_string(sh::root().join("manifests/Dockerfile")).unwrap();
    let command = text(&container["command"][0]);
    assert!(dockerfile.contains(&format!("ENTRYPOINT [\"{command}\"]")));
    let copied = dockerfile.lines().find(|l| l.starts_with("COPY ")).unwrap();
    assert!(copied.split(' ').any(|word| format!("/{word}") == command));
}

#[test]
fn kustomize_takes_every_file_and_the_names_agree() {
    let kustomization = yaml("kustomization.yaml");
    let listed: BTreeSet<_> = list(&kustomization["resources"]).iter().map(|r| text(r).to_owned()).collect();
    let dir = std::fs::read_dir(sh::root().join("manifests/base")).unwrap();
    let mut files: BTreeSet<_> = dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.remove("kustomization.yaml");
    assert_eq!(listed, files);

    assert_eq!(yaml("namespace.yaml")["metadata"]["name"], kustomization["namespace"]);
    assert_eq!(yaml("serviceaccount.yaml")["metadata"]["name"], pod()["serviceAccountName"]);
    let daemonset = yaml("daemonset.yaml");
    let selector = daemonset["spec"]["selector"]["matchLabels"].as_mapping().unwrap().clone();
    for (key, value) in selector {
        assert_eq!(daemonset["spec"]["template"]["metadata"]["labels"][&key], value);
    }
}

#[test]
fn whatever_a_kustomization_names_is_there_and_nothing_else_lies_beside_it() {
    let manifests = sh::root().join("manifests");
    let folders = |below: &str| {
        let all = std::fs::read_dir(manifests.join(below)).unwrap();
        all.map(|entry| entry.unwrap().path()).collect::<Vec<PathBuf>>()
    };
    let all = [folders("components"), folders("overlays"), vec![manifests.join("base")]].concat();
    assert!(all.len() >= 6, "{all:?}");
    for folder in all {
        let it = &documents(&folder.join("kustomization.yaml"))[0];
        let is_component = folder.parent().unwrap().ends_with("components");
        assert_eq!(it["kind"] == "Component", is_component, "{}", folder.display());
        let paths = list(&it["resources"]).iter().chain(list(&it["components"])).map(text);
        let paths = paths.chain(list(&it["patches"]).iter().map(|patch| text(&patch["path"])));
        let generated = list(&it["configMapGenerator"]).iter().flat_map(|one| list(&one["files"])).map(text);
        let named: BTreeSet<PathBuf> = paths.chain(generated).map(|path| folder.join(path)).collect();
        for path in &named {
            let file = if path.is_dir() { path.join("kustomization.yaml") } else { path.clone() };
            assert!(file.is_file(), "{} is not there", path.display());
        }
        for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()) {
            let is_named = named.contains(&entry.path()) || entry.file_name() == "kustomization.yaml";
            assert!(is_named, "no kustomization lists {}", entry.path().display());
            // It parses.
            assert!(!documents(&entry.path()).is_empty());
        }
    }
}

/// A component's change of the DaemonSet: of its one container, by the names that the base has.
fn change(component: &str) -> Value {
    let path = sh::root().join("manifests/components").join(component).join("daemonset.yaml");
    let it = documents(&path).remove(0);
    assert_eq!(it["metadata"]["name"], yaml("daemonset.yaml")["metadata"]["name"]);
    let pod = it["spec"]["template"]["spec"].clone();
    for one in list(&pod["containers"]) {
        assert_eq!(one["name"], container()["name"], "another name would be another container");
    }
    pod
}

#[test]
fn events_on_pods_take_two_verbs_and_a_token_that_ends() {
    let folder = sh::root().join("manifests/components/kubernetes-events");
    let [role, binding] = &documents(&folder.join("rbac.yaml"))[..] else { panic!("two objects") };
    let rules: Value = serde_yaml_ng::from_str(
        "[{apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}]",
    )
    .unwrap();
    assert_eq!(role["rules"], rules, "nothing else, and nothing to read");
    assert_eq!(
        (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]),
        (&role["kind"], &role["metadata"]["name"])
    );
    let subject = &binding["subjects"][0];
    let account = yaml("serviceaccount.yaml");
    assert_eq!((&subject["kind"], &subject["name"]), (&account["kind"], &account["metadata"]["name"]));
    assert_eq!(subject["namespace"], yaml("kustomization.yaml")["namespace"]);

    let pod = change("kubernetes-events");
    let container = &pod["containers"][0];
    let on = &container["env"][0];
    assert_eq!((text(&on["name"]), text(&on["value"])), ("PODOPSY_KUBERNETES_EVENTS", "true"));
    let (mount, volume) = (&container["volumeMounts"][0], &pod["volumes"][0]);
    assert_eq!((&mount["name"], &mount["readOnly"]), (&volume["name"], &Value::Bool(true)));
    let sources = list(&volume["projected"]["sources"]);
    let token = &sources[0]["serviceAccountToken"];
    assert!(
        token["expirationSeconds"].as_u64().is_some_and(|seconds| (600..=3600).contains(&seconds)),
        "{token:?}"
    );
    // The agent's default folder for them.
    let code = std::fs::read_to_string(sh::root().join("agent/src/service/kubernetes.rs")).unwrap();
    let folder = text(&mount["mountPath"]);
    for path in [&token["path"], &sources[1]["configMap"]["items"][0]["path"]] {
        let wanted = format!("= \"{folder}/{}\";", text(path));
        assert!(code.contains(&wanted), "{wanted}");
    }
}

#[test]
fn the_clusters_dns_is_asked_only_where_a_component_says_so() {
    assert_eq!((&pod()["dnsPolicy"], &pod()["hostNetwork"]), (&"Default".into(), &Value::Null));
    assert_eq!(change("cluster-dns")["dnsPolicy"], "ClusterFirst");
}

#[test]
fn the_network_policy_admits_prometheus_to_the_port_of_the_agent_alone() {
    let path = sh::root().join("manifests/components/network-policy/networkpolicy.yaml");
    let policy = &documents(&path)[0]["spec"];
    let daemonset = yaml("daemonset.yaml");
    assert_eq!(policy["podSelector"], daemonset["spec"]["selector"], "it selects the agent's pods");
    assert_eq!(list(&policy["policyTypes"]), ["Ingress"], "exports leave as before");
    let [rule] = list(&policy["ingress"]) else { panic!("one rule") };
    let [from] = list(&rule["from"]) else {
        panic!("one source, or the two selectors would be alternatives")
    };
    assert!(
        from["namespaceSelector"]["matchLabels"].is_mapping()
            && from["podSelector"]["matchLabels"].is_mapping()
    );
    let [port] = list(&rule["ports"]) else { panic!("one port") };
    assert_eq!(port["port"], container()["ports"][0]["name"]);
}

#[test]
fn the_metrics_token_is_mounted_where_the_agent_reads_it() {
    let pod = change("metrics-token");
    let container = &pod["containers"][0];
    let (variable, mount) = (&container["env"][0], &container["volumeMounts"][0]);
    assert_eq!(variable["name"], "PODOPSY_METRICS_TOKEN_FILE");
    assert_eq!(text(&variable["value"]), format!("{}/token", text(&mount["mountPath"])));
    assert_eq!((&mount["name"], &mount["readOnly"]), (&pod["volumes"][0]["name"], &Value::Bool(true)));
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], "podopsy-metrics-token");
}

#[test]
fn explicit_capabilities_replace_privileged_and_are_those_of_the_unit() {
    let security = change("explicit-capabilities")["containers"][0]["securityContext"].clone();
    assert_eq!(
        (&security["privileged"], &security["capabilities"]["drop"][0]),
        (&false.into(), &"ALL".into())
    );
    let unit = std::fs::read_to_string(sh::root().join("manifests/systemd/podopsy-agent.service")).unwrap();
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    for name in list(&security["capabilities"]["add"]).iter().map(text) {
        assert!(set.split(' ').any(|one| one.strip_prefix("CAP_") == Some(name)), "{name}: {set}");
    }
}

#[test]
fn before_kubernetes_1_30_apparmor_is_turned_off_by_an_annotation_for_the_container_alone() {
    let folder = sh::root().join("manifests/components/explicit-capabilities-before-1.30");
    let it = &documents(&folder.join("kustomization.yaml"))[0];
    assert_eq!(list(&it["components"]), ["../explicit-capabilities"], "the same otherwise");
    let template = documents(&folder.join("daemonset.yaml")).remove(0)["spec"]["template"].clone();
    let annotations = template["metadata"]["annotations"].as_mapping().unwrap();
    let key = format!("container.apparmor.security.beta.kubernetes.io/{}", text(&container()["name"]));
    assert_eq!((annotations.len(), &annotations[key.as_str()]), (1, &"unconfined".into()));
    let security = change("explicit-capabilities-before-1.30")["containers"][0]["securityContext"].clone();
    let removed: Value = serde_yaml_ng::from_str("{appArmorProfile: null}").unwrap();
    assert_eq!(security, removed, "an API server before 1.30 refuses the field");
    let field = &change("explicit-capabilities")["containers"][0]["securityContext"]["appArmorProfile"];
    assert_eq!(field["type"], "Unconfined");
}

#[test]
fn the_former_name_of_explicit_capabilities_still_works() {
    let manifests = sh::root().join("manifests");
    let alias = |folder: &str| documents(&manifests.join(folder).join("kustomization.yaml")).remove(0);
    assert_eq!(list(&alias("overlays/named-rights")["resources"]), ["../explicit-capabilities"]);
    assert_eq!(list(&alias("components/named-rights")["components"]), ["../explicit-capabilities"]);
}
