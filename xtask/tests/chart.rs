//! The chart says what kustomize says, with each component and with several.
//!
//! Helm itself is not in Debian. Its engine is Go's text/template, which is: a program of a few lines renders the chart with it,
//! and with the one function of Helm's that the templates use, toJson.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use serde_yaml_ng::Value;
use xtask::{chart, sh};

const ENGINE: &str = r#"package main

import ("encoding/json"; "fmt"; "os"; "path/filepath"; "text/template")

func main() {
	var data any
	if err := json.Unmarshal([]byte(os.Args[2]), &data); err != nil { panic(err) }
	toJSON := func(value any) string { text, err := json.Marshal(value); if err != nil { panic(err) }; return string(text) }
	files, _ := filepath.Glob(filepath.Join(os.Args[1], "*.yaml"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil { panic(err) }
		parsed := template.Must(template.New(file).Option("missingkey=error").Funcs(template.FuncMap{"toJson": toJSON}).Parse(string(text)))
		fmt.Println("---")
		if err := parsed.Execute(os.Stdout, data); err != nil { panic(err) }
	}
}
"#;

struct Chart {
    folder: PathBuf,
    engine: PathBuf,
    values: serde_json::Value,
}

impl Chart {
    fn write(folder: &Path) -> Chart {
        let chart = folder.join("podopsy");
        chart::write(&chart).expect("a chart");
        let source = folder.join("engine.go");
        std::fs::write(&source, ENGINE).expect("write it");
        let engine = folder.join("engine");
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(&engine).arg(&source).current_dir(folder).env("GO111MODULE", "off");
        sh::run(&mut go).expect("go build");
        let values = std::fs::read_to_string(chart.join("values.yaml")).expect("values");
        let values = serde_yaml_ng::from_str(&values).expect("YAML");
        Chart { folder: chart, engine, values }
    }

    /// The objects of a release, with these components.
    fn render(
        &self,
        namespace: &str,
        components: &[&str],
        change: impl Fn(&mut serde_json::Value),
    ) -> BTreeMap<(String, String), Value> {
        let mut values = self.values.clone();
        for name in components {
            assert_eq!(values["components"][name], false, "{name} is no switch, or it is on");
            values["components"][name] = true.into();
        }
        change(&mut values);
        let data = json!({ "Values": values, "Release": { "Namespace": namespace } }).to_string();
        let text = sh::capture(Command::new(&self.engine).arg(self.folder.join("templates")).arg(data));
        let text = text.unwrap_or_else(|error| panic!("{components:?}: {error:#}"));
        let document = |text| {
            serde_yaml_ng::from_str::<Value>(text)
                .unwrap_or_else(|error| panic!("{components:?}: {error}: {text}"))
        };
        let text_of = |value: &Value| value.as_str().expect("a text").to_owned();
        let objects = text.split("---\n").map(document).filter(|object| !object.is_null());
        objects
            .map(|object| ((text_of(&object["kind"]), text_of(&object["metadata"]["name"])), object))
            .collect()
    }
}

/// With lists whose items have names in the order of the names: kustomize puts added ones first.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Sequence(list) => {
            let mut list: Vec<Value> = list.iter().map(sorted).collect();
            list.sort_by_key(|item| item["name"].as_str().map(str::to_owned));
            Value::Sequence(list)
        }
        Value::Mapping(map) => {
            Value::Mapping(map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        _ => value.clone(),
    }
}

#[test]
#[ignore = "needs `cargo xtask setup test`"]
fn the_chart_is_what_kustomize_renders() {
    let folder = tempfile::tempdir().expect("a folder");
    let chart = Chart::write(folder.path());
    let switches = chart.values["components"].as_object().expect("switches").keys();
    let single: Vec<Vec<&str>> = switches.map(|name| vec![name.as_str()]).collect();
    assert!(single.len() >= 12, "{single:?}");
    let several = [
        vec![],
        vec!["kubernetes-events", "metrics-token", "loki", "network-policy"],
        vec!["loki", "otlp", "k3s", "service-monitor"],
        vec!["eks", "explicit-capabilities", "prometheus-operator", "kubernetes-events"],
    ];
    for components in single.into_iter().chain(several) {
        let rendered = chart.render("podopsy", &components, |_| ());
        let mut expected = chart::render(&components).expect("kustomize");
        // Helm makes the namespace, if it is asked to.
        expected.retain(|(kind, _), _| kind != "Namespace");
        assert_eq!(
            rendered.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "{components:?}"
        );
        for (id, object) in &expected {
            assert_eq!(sorted(&rendered[id]), sorted(object), "{components:?}: {id:?}");
        }
    }
}

#[test]
#[ignore = "needs `cargo xtask setup test`"]
fn values_are_where_they_belong() {
    let folder = tempfile::tempdir().expect("a folder");
    let chart = Chart::write(folder.path());
    let objects = chart.render("monitoring", &["kubernetes-events", "openshift", "k3s"], |values| {
        values["image"] =
            json!({ "repository": "registry.example.com/podopsy", "tag": "2", "pullPolicy": "Always" });
        values["nodeSelector"] = json!({ "disk": "ssd" });
        values["tolerations"] = json!([]);
        values["resources"] = json!({ "limits": { "memory": "512Mi" } });
        values["extraEnv"] =
            json!([{ "name": "PODOPSY_CPU_BUDGET", "value": "1" }, { "name": "A", "value": "{{ b" }]);
    });
    let get = |kind: &str, name: &str| &objects[&(kind.to_owned(), name.to_owned())];
    let daemonset = get("DaemonSet", "podopsy-agent");
    let pod = &daemonset["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&"registry.example.com/podopsy:2".into(), &"Always".into())
    );
    assert_eq!(
        (&pod["nodeSelector"]["disk"], &pod["tolerations"].as_sequence().map(Vec::len)),
        (&"ssd".into(), &Some(0))
    );
    assert_eq!(container["resources"]["limits"]["memory"], "512Mi");
    let last: Vec<_> = container["env"].as_sequence().expect("a list").iter().rev().take(2).collect();
    assert_eq!((&last[1]["name"], &last[0]["value"]), (&"PODOPSY_CPU_BUDGET".into(), &"{{ b".into()));
    // The release's namespace is in all objects, and in what names the account.
    assert_eq!(daemonset["metadata"]["namespace"], "monitoring");
    assert_eq!(daemonset["metadata"]["labels"]["app.kubernetes.io/part-of"], "podopsy");
    assert_eq!(get("ClusterRoleBinding", "podopsy-agent-events")["subjects"][0]["namespace"], "monitoring");
    assert_eq!(
        get("SecurityContextConstraints", "podopsy-agent")["users"][0],
        "system:serviceaccount:monitoring:podopsy-agent"
    );
}
