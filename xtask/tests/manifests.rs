//! The manifests say what the code and the image need: parsed, not grepped.

use std::collections::BTreeSet;

use serde_yaml_ng::Value;
use xtask::{image, sh};

fn yaml(name: &str) -> Value {
    let path = sh::root().join("manifests/base").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
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
fn mounts_below_run_do_not_outlive_the_hosts() {
    // A private copy of /run would keep dead pods' root filesystems and network namespaces busy.
    let container = container();
    let run = list(&container["volumeMounts"]).iter().find(|m| m["mountPath"] == "/run").unwrap();
    assert_eq!(run["mountPropagation"], "HostToContainer");
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
