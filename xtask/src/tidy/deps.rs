//! Direct dependencies, those of tests and build scripts included, point one way: wire ← probe-ebpf; wire ← agent ← cli.
//! Read from `cargo metadata`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sh;

/// A package, and the direct dependencies (also of its tests) that it must not have.
struct Direction {
    package: &'static str,
    forbids: fn(&str) -> bool,
    why: &'static str,
}

const DIRECTIONS: &[Direction] = &[
    Direction {
        package: "podopsy-wire",
        forbids: |name| name != "bytemuck",
        why: "both sides of the kernel boundary compile it: it needs only the derives of bytemuck",
    },
    Direction {
        package: "podopsy-probe",
        forbids: |name| name != "podopsy-wire" && !name.starts_with("aya-"),
        why: "the kernel side uses the wire and aya's kernel crates, nothing else",
    },
    Direction {
        package: "podopsy-agent",
        forbids: |name| ["podopsy", "podopsy-tests", "podopsy-victims", "xtask"].contains(&name),
        why: "the agent is below the CLI and the tests",
    },
    Direction {
        package: "podopsy",
        forbids: |name| {
            name.starts_with("aya")
                || ["podopsy-wire", "podopsy-tests", "podopsy-victims", "xtask", "blazesym"].contains(&name)
        },
        why: "the CLI renders what the agent's crates return, and never parses kernel bytes",
    },
    Direction {
        package: "podopsy-victims",
        forbids: |name| name.starts_with("podopsy") || name == "xtask",
        why: "a victim must not depend on the recorder",
    },
    Direction {
        package: "xtask",
        forbids: |name| name.starts_with("podopsy") || name.starts_with("aya"),
        why: "xtask builds the rest, so it must build without it",
    },
];

/// Every dependency in the wrong direction, in this workspace and in the kernel side's.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for manifest in ["Cargo.toml", "probe-ebpf/Cargo.toml"].map(|m| root.join(m)) {
        if manifest.exists() {
            let mut command = sh::cargo();
            command
                .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
                .arg(&manifest);
            let json = sh::capture(&mut command)?;
            found.extend(wrong_way(&serde_json::from_str(&json).context("cargo metadata")?));
        }
    }
    Ok(found)
}

fn wrong_way(metadata: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        for direction in DIRECTIONS.iter().filter(|d| package["name"] == d.package) {
            for dependency in list(&package["dependencies"]) {
                let name = dependency["name"].as_str().unwrap_or_default();
                if (direction.forbids)(name) {
                    found.push(format!(
                        "{} depends on {name}: {} → remove it from {}",
                        direction.package,
                        direction.why,
                        package["manifest_path"].as_str().unwrap_or("its Cargo.toml")
                    ));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(package: &str, dependency: &str) -> Vec<String> {
        wrong_way(&json!({"packages": [{"name": package, "dependencies": [{"name": dependency}]}]}))
    }

    #[test]
    fn a_dependency_in_the_wrong_direction_is_reported() {
        for (package, dependency) in [
            ("podopsy-wire", "serde"),
            ("podopsy-probe", "serde"),
            ("podopsy-agent", "podopsy"),
            ("podopsy-agent", "podopsy-tests"),
            ("podopsy", "aya"),
            ("podopsy", "aya-log"),
            ("podopsy", "podopsy-wire"),
            ("podopsy-victims", "podopsy-agent"),
            ("xtask", "podopsy-agent"),
        ] {
            let found = found(package, dependency);
            assert!(found.len() == 1 && found[0].contains(" → "), "{package} → {dependency}: {found:?}");
        }
    }

    #[test]
    fn dependencies_in_the_right_direction_are_accepted() {
        for (package, dependency) in [
            ("podopsy-wire", "bytemuck"),
            ("podopsy-probe", "aya-ebpf"),
            ("podopsy-probe", "podopsy-wire"),
            ("podopsy-agent", "podopsy-wire"),
            ("podopsy-agent", "aya"),
            ("podopsy", "podopsy-agent"),
            ("podopsy-tests", "podopsy-agent"),
        ] {
            let found = found(package, dependency);
            assert!(found.is_empty(), "{found:?}");
        }
    }
}
