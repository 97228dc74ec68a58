//! Every alert has a promtool test, a runbook and a line in each list of alerts. promtool itself runs in tests/kernel/alerts.rs.

use std::collections::BTreeSet;
use std::path::Path;

use serde_yaml_ng::Value;
use xtask::sh;

const RULES: &str = "manifests/prometheus/podopsy.rules.yaml";
const RUNBOOKS: &str = "docs/runbooks.md";
/// The parts of a runbook.
const PARTS: [&str; 3] = ["### What it means", "### What to check", "### What to do"];

fn read(path: impl AsRef<Path>) -> String {
    let path = sh::root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

/// The rules with a name of an alert.
fn alerts() -> Vec<Value> {
    let rules = yaml(RULES);
    let all = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]));
    all.filter(|rule| rule["alert"].is_string()).cloned().collect()
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().expect("a name")
}

/// The text below `## heading`, until the next one.
fn section<'a>(page: &'a str, heading: &str) -> Option<&'a str> {
    page.split("\n## ").skip(1).find_map(|part| part.strip_prefix(heading)?.strip_prefix('\n'))
}

#[test]
fn each_alert_fires_in_a_test_of_promtool_and_does_not_in_another() {
    let tests = yaml("manifests/prometheus/podopsy.rules.test.yaml");
    let cases = || list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"]));
    let alerts = alerts();
    assert!(alerts.len() >= 9, "{alerts:?}");
    for alert in &alerts {
        let of_it = || cases().filter(|case| case["alertname"] == alert["alert"]);
        let fires = of_it().filter(|case| !list(&case["exp_alerts"]).is_empty());
        let silent = of_it().filter(|case| list(&case["exp_alerts"]).is_empty());
        assert!(fires.count() > 0, "no test in which {} fires", name(alert));
        // Not yet, not any more, and near misses.
        assert!(silent.count() >= 3, "too few tests in which {} does not fire", name(alert));
    }
    let known: BTreeSet<&str> = alerts.iter().map(name).collect();
    let tested: BTreeSet<&str> = cases().filter_map(|case| case["alertname"].as_str()).collect();
    assert_eq!(tested, known, "promtool says nothing about an alert that does not exist");
}

#[test]
fn each_alert_names_its_runbook_and_the_runbook_has_all_parts() {
    let page = read(RUNBOOKS);
    for alert in alerts() {
        let name = name(&alert);
        // GitHub's and most renderers' anchor of the heading.
        let anchor = format!("{RUNBOOKS}#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], anchor.as_str(), "{name}");
        let section = section(&page, name).unwrap_or_else(|| panic!("{RUNBOOKS} has no section {name}"));
        let mut rest = section;
        for part in PARTS {
            let (before, after) =
                rest.split_once(&format!("\n{part}\n")).unwrap_or_else(|| panic!("{name}: no {part}"));
            assert!(part == PARTS[0] || before.trim().len() > 40, "{name}: the part before {part} is empty");
            rest = after;
        }
        assert!(rest.trim().len() > 40, "{name}: its last part is empty");
        // Commands with their output.
        assert!(section.contains("podopsy ") && section.contains("\n```"), "{name}: no command");
    }
    let known: BTreeSet<String> = alerts().iter().map(|alert| name(alert).to_owned()).collect();
    let described = page.lines().filter_map(|line| line.strip_prefix("## Podopsy"));
    let described: BTreeSet<String> = described.map(|rest| format!("Podopsy{rest}")).collect();
    assert_eq!(described, known, "a runbook of an alert that does not exist");
}

#[test]
fn the_lists_of_alerts_are_complete() {
    for page in ["docs/metrics.md", "manifests/README.md"] {
        let text = read(page);
        for alert in alerts() {
            let row = format!("| `{}` |", name(&alert));
            let row_with_link = format!("| [`{}`](", name(&alert));
            assert!(
                text.contains(&row) || text.contains(&row_with_link),
                "{page} has no line for {}",
                name(&alert)
            );
        }
    }
}

#[test]
fn the_operators_rules_are_the_same() {
    let object = yaml("manifests/components/prometheus-rules/prometheusrule.yaml");
    assert_eq!(object["spec"]["groups"], yaml(RULES)["groups"]);
}
