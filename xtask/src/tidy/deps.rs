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
        forbids: |name| name == "podopsy" || is_above_the_products(name),
        why: "the agent is below the CLI and the tests",
    },
    Direction {
        package: "podopsy",
        forbids: |name| {
            name.starts_with("aya")
                || ["podopsy-wire", "podopsy-parse"].contains(&name)
                || is_above_the_products(name)
        },
        why: "the CLI renders what the agent's crates return, and never parses kernel bytes",
    },
    Direction {
        package: "podopsy-victims",
        forbids: |name| name.starts_with("podopsy") || name == "xtask",
        why: "a victim must not depend on the recorder",
    },
    Direction {
        package: "podopsy-harness",
        forbids: |name| {
            (name.starts_with("podopsy") && !["podopsy-image", "podopsy-runtime"].contains(&name))
                || name.starts_with("xtask")
        },
        why: "the harness starts pods without the recorder: it only shares the client of the container runtime, and how images are written",
    },
    Direction {
        package: "podopsy-image",
        forbids: |name| name.starts_with("podopsy") || name.starts_with("xtask"),
        why: "it writes images of anything",
    },
    Direction {
        package: "podopsy-release",
        forbids: |name| (name.starts_with("podopsy") && name != "podopsy-image") || name.starts_with("xtask"),
        why: "it packs programs that are built already",
    },
    Direction {
        package: "podopsy-demo",
        forbids: |name| {
            (name.starts_with("podopsy")
                && !["podopsy-harness", "podopsy-model", "podopsy-terminal"].contains(&name))
                || name.starts_with("xtask")
        },
        why: "the demo runs the binaries that users run, and reads the events that they print",
    },
    Direction {
        package: "podopsy-soak",
        forbids: |name| {
            (name.starts_with("podopsy") && name != "podopsy-harness") || name.starts_with("xtask")
        },
        why: "the soak's load must not depend on the recorder that it measures",
    },
    Direction {
        package: "podopsy-guest",
        forbids: |name| name.starts_with("podopsy") || name.starts_with("xtask"),
        why: "the lab's init runs the tests, and must build without them",
    },
    Direction {
        package: "xtask-launch",
        forbids: |_| true,
        why: "it starts xtask within seconds of a fresh clone, so it has no dependencies",
    },
    Direction {
        package: "xtask",
        forbids: |name| name.starts_with("podopsy") || name.starts_with("aya"),
        why: "xtask builds the rest, so it must build without it",
    },
];

/// Packages that test, measure or build the agent and the CLI.
fn is_above_the_products(name: &str) -> bool {
    const TESTS: [&str; 8] = [
        "podopsy-image",
        "podopsy-release",
        "podopsy-tests",
        "podopsy-harness",
        "podopsy-demo",
        "podopsy-soak",
        "podopsy-guest",
        "podopsy-victims",
    ];
    TESTS.contains(&name) || name.starts_with("xtask")
}

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
            ("podopsy-agent", "podopsy-harness"),
            ("podopsy-agent", "xtask-launch"),
            ("podopsy", "podopsy-demo"),
            ("podopsy-harness", "podopsy-recorder"),
            ("podopsy-demo", "podopsy-recorder"),
            ("podopsy-soak", "podopsy-model"),
            ("podopsy-guest", "podopsy-harness"),
            ("xtask-launch", "anyhow"),
            ("podopsy", "aya"),
            ("podopsy", "aya-log"),
            ("podopsy", "podopsy-wire"),
            ("podopsy-victims", "podopsy-agent"),
            ("xtask", "podopsy-agent"),
            ("podopsy-image", "podopsy-harness"),
            ("podopsy-release", "podopsy-agent"),
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
            ("podopsy-harness", "podopsy-runtime"),
            ("podopsy-harness", "podopsy-image"),
            ("podopsy-release", "podopsy-image"),
            ("podopsy-demo", "podopsy-harness"),
            ("podopsy-demo", "podopsy-model"),
            ("podopsy-soak", "podopsy-harness"),
        ] {
            let found = found(package, dependency);
            assert!(found.is_empty(), "{found:?}");
        }
    }
}
