//! The walls between crates: which crate must not reach which other one through its normal dependencies, read from
//! `cargo metadata`. What tests and build scripts depend on does not count; [`super::deps`] has the rules about those.
//!
//! The metadata unify features over the whole workspace: a crate that is reachable only with a feature of tests counts, too.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::sh;

/// A crate, and the crates that it must not reach, directly or through others.
struct Wall {
    package: &'static str,
    unreachable: &'static [&'static str],
    why: &'static str,
}

const WALLS: &[Wall] = &[
    Wall {
        package: "podopsy-model",
        unreachable: &["tokio", "nix", "libc", "aya", "podopsy-system", "podopsy-wire"],
        why: "the model is plain data that every crate shares: no I/O",
    },
    Wall {
        package: "podopsy-system",
        unreachable: &["tokio", "aya", "podopsy-wire", "podopsy-pods"],
        why: "it wraps single calls of the system",
    },
    Wall {
        package: "podopsy-decode",
        unreachable: &["tokio", "nix", "aya", "podopsy-system", "podopsy-pods"],
        why: "it turns bytes into the model: no I/O",
    },
    Wall {
        package: "podopsy-packets",
        unreachable: &["tokio", "aya", "podopsy-probes", "podopsy-pods", "podopsy-decode"],
        why: "it works without kernel probes, and hands on packets as they are",
    },
    Wall {
        package: "podopsy-parse",
        unreachable: &["tokio", "aya", "podopsy-system", "podopsy-probes", "podopsy-pods", "podopsy-stacks"],
        why: "it runs in the parsing worker: bytes in, plain data out",
    },
    Wall {
        package: "podopsy-helper",
        unreachable: &["tokio", "aya", "podopsy-parse", "podopsy-pods", "podopsy-stacks"],
        why: "it starts processes and passes files on, and reads none",
    },
    Wall {
        package: "podopsy-opener",
        unreachable: &["tokio", "aya", "podopsy-parse", "podopsy-probes", "podopsy-pods", "podopsy-stacks"],
        why: "it holds rights, and parses nothing",
    },
    Wall {
        package: "podopsy-runtime",
        unreachable: &[
            "aya",
            "inotify",
            "procfs",
            "podopsy-opener",
            "podopsy-pods",
            "podopsy-probes",
            "podopsy-worker",
        ],
        why: "it asks the container runtime, and knows neither cgroups nor processes",
    },
    Wall {
        package: "podopsy-worker",
        unreachable: &["tokio", "aya", "podopsy-opener", "podopsy-probes", "podopsy-pods", "podopsy-stacks"],
        why: "a worker knows files, and no processes",
    },
    Wall {
        package: "podopsy-stacks",
        unreachable: &["tokio", "aya", "podopsy-probes", "podopsy-pods"],
        why: "stacks are named from files and maps, with and without kernel probes",
    },
    Wall {
        package: "podopsy-probes",
        unreachable: &["podopsy-pods", "podopsy-recorder", "podopsy-profiles"],
        why: "a probe knows cgroup and process IDs, and no pods",
    },
    Wall {
        package: "podopsy-pods",
        unreachable: &["aya", "podopsy-wire", "podopsy-decode", "podopsy-probes", "rusqlite", "reqwest"],
        why: "it resolves owners from CRI and /proc, and knows no records",
    },
    Wall {
        package: "podopsy-profiles",
        unreachable: &["tokio", "aya", "procfs", "podopsy-pods", "podopsy-stacks", "podopsy-system"],
        why: "formats are written and compared without processes",
    },
    Wall {
        package: "podopsy-recorder",
        unreachable: &[
            "rusqlite",
            "reqwest",
            "opentelemetry-proto",
            "podopsy-client",
            "podopsy-deliver",
            "podopsy-profiles",
            "podopsy-store",
        ],
        why: "it emits events, and knows neither where they go nor in which format",
    },
    Wall {
        package: "podopsy-store",
        unreachable: &["aya", "hyper", "reqwest", "podopsy-pods", "podopsy-recorder"],
        why: "it keeps events in SQLite, and speaks no protocol",
    },
    Wall {
        package: "podopsy-deliver",
        unreachable: &["aya", "rusqlite", "podopsy-pods", "podopsy-recorder", "podopsy-store"],
        why: "it sends events, and knows neither their origin nor where they are kept",
    },
    Wall {
        package: "podopsy-doctor",
        unreachable: &["aya", "podopsy-probes", "podopsy-recorder"],
        why: "it has to work where probes cannot be loaded",
    },
    Wall {
        package: "podopsy-client",
        unreachable: &["aya", "reqwest", "podopsy-pods", "podopsy-recorder", "podopsy-agent"],
        why: "it talks to an agent through the API's socket, and links no recorder",
    },
    Wall {
        package: "podopsy-fleet",
        unreachable: &["aya", "reqwest", "rustls", "podopsy-pods", "podopsy-recorder", "podopsy-agent"],
        why: "it asks agents through kubectl, and links neither a recorder nor another way to a network",
    },
    Wall {
        package: "podopsy-report",
        unreachable: &["tokio", "nix", "aya", "hyper", "podopsy-client", "podopsy-pods", "podopsy-store"],
        why: "it writes a document from plain data, wherever that came from",
    },
    Wall {
        package: "podopsy-top",
        unreachable: &["tokio", "nix", "aya", "hyper", "podopsy-client", "podopsy-pods", "podopsy-store"],
        why: "it draws plain rows and profiles, wherever they came from",
    },
    Wall {
        package: "podopsy-net",
        unreachable: &["tokio", "aya", "podopsy-pods", "podopsy-recorder", "podopsy-stacks"],
        why: "it asks the kernel about one namespace, and knows no pods",
    },
    Wall {
        package: "podopsy-coredump",
        unreachable: &["tokio", "aya", "zstd", "podopsy-pods", "podopsy-stacks"],
        why: "it stops a process, and knows neither pods nor how a core is kept",
    },
    Wall {
        package: "podopsy",
        unreachable: &[
            "reqwest",
            "rustls",
            "tonic",
            "opentelemetry-proto",
            "podopsy-agent",
            "podopsy-deliver",
        ],
        why: "the CLI links no exporter",
    },
];

/// A crate that only some members of the workspace may depend on directly; tests are free.
struct Gate {
    dependency: &'static str,
    only: &'static [&'static str],
    why: &'static str,
}

const GATES: &[Gate] = &[
    Gate { dependency: "aya", only: &["podopsy-probes"], why: "the others get plain bytes and counts" },
    Gate { dependency: "aya-log", only: &["podopsy-probes"], why: "the others get plain bytes and counts" },
    Gate {
        dependency: "podopsy-parse",
        only: &["podopsy-worker"],
        why: "what containers wrote is parsed in the worker alone",
    },
    Gate { dependency: "addr2line", only: &["podopsy-parse"], why: "the others get named frames" },
    Gate { dependency: "rusqlite", only: &["podopsy-store"], why: "the others use the store's functions" },
    Gate { dependency: "reqwest", only: &["podopsy-deliver"], why: "only exports speak to other hosts" },
    Gate {
        dependency: "opentelemetry-proto",
        only: &["podopsy-deliver", "podopsy-tests"],
        why: "only exports encode OTLP",
    },
];

/// The normal dependencies of each package, by name.
type Graph = BTreeMap<String, Vec<String>>;

/// Every wall that is crossed in the workspace at `root`.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut command = sh::cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]);
    let json = sh::capture(command.arg(root.join("Cargo.toml")))?;
    let metadata: Value = serde_json::from_str(&json).context("cargo metadata")?;
    let graph = graph(&metadata);
    for wall in WALLS {
        ensure!(
            graph.contains_key(wall.package),
            "xtask/src/tidy/walls.rs has {}, which is gone",
            wall.package
        );
    }
    Ok(violations(&graph, &members(&metadata)))
}

fn graph(metadata: &Value) -> Graph {
    let names = names_by_id(metadata);
    let mut graph = Graph::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let is_normal =
            |dependency: &&Value| list(&dependency["dep_kinds"]).iter().any(|k| k["kind"].is_null());
        let dependencies = list(&node["deps"]).iter().filter(is_normal);
        let dependencies = dependencies.filter_map(|dependency| name(&names, &dependency["pkg"]));
        if let Some(package) = name(&names, &node["id"]) {
            // Two versions of a package are one here: both count as the package.
            graph.entry(package).or_default().extend(dependencies);
        }
    }
    graph
}

fn members(metadata: &Value) -> Vec<String> {
    let names = names_by_id(metadata);
    list(&metadata["workspace_members"]).iter().filter_map(|id| name(&names, id)).collect()
}

fn names_by_id(metadata: &Value) -> BTreeMap<&str, &str> {
    list(&metadata["packages"])
        .iter()
        .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
        .collect()
}

fn name(names: &BTreeMap<&str, &str>, id: &Value) -> Option<String> {
    names.get(id.as_str()?).map(|name| (*name).to_owned())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn violations(graph: &Graph, members: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for wall in WALLS {
        for target in wall.unreachable {
            if let Some(path) = path(graph, wall.package, target) {
                found.push(format!("{} must not reach {target}: {} → cut {path}", wall.package, wall.why));
            }
        }
    }
    for Gate { dependency, only, why } in GATES {
        let has =
            |member: &&String| graph.get(*member).is_some_and(|all| all.iter().any(|d| d == dependency));
        let others = members.iter().filter(|member| !only.contains(&member.as_str()));
        for member in others.filter(has) {
            let owner = only.first().unwrap_or(&"none");
            found.push(format!("{member} must not depend on {dependency}: {why} → use {owner}"));
        }
    }
    found
}

/// The shortest path from a package to another one, as `a → b → c`.
fn path(graph: &Graph, from: &str, to: &str) -> Option<String> {
    let mut todo = VecDeque::from([vec![from]]);
    let mut seen = vec![from];
    while let Some(path) = todo.pop_front() {
        let last = *path.last()?;
        if last == to && path.len() > 1 {
            return Some(path.join(" → "));
        }
        for next in graph.get(last).into_iter().flatten() {
            if !seen.contains(&next.as_str()) {
                seen.push(next);
                todo.push_back([path.as_slice(), &[next]].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn graph_of(edges: &[(&str, &[&str])]) -> Graph {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        edges.iter().map(|(name, dependencies)| ((*name).to_owned(), owned(dependencies))).collect()
    }

    #[test]
    fn a_crate_that_is_reached_through_others_crosses_the_wall() {
        let graph = graph_of(&[
            ("podopsy", &["podopsy-client"]),
            ("podopsy-client", &["podopsy-model", "helper"]),
            ("helper", &["reqwest"]),
            ("podopsy-model", &[]),
        ]);
        let found = violations(&graph, &[]);
        let expected = [
            "podopsy-client must not reach reqwest: it talks to an agent through the API's socket, and links no recorder \
             → cut podopsy-client → helper → reqwest",
            "podopsy must not reach reqwest: the CLI links no exporter → cut podopsy → podopsy-client → helper → reqwest",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn every_wall_is_found_when_it_is_crossed() {
        for wall in WALLS {
            for target in wall.unreachable {
                let graph = graph_of(&[(wall.package, &["between"]), ("between", &[target])]);
                assert!(
                    violations(&graph, &[]).iter().any(|v| v.starts_with(wall.package) && v.contains(target)),
                    "{} → {target}",
                    wall.package
                );
            }
        }
    }

    #[test]
    fn a_direct_dependency_that_belongs_to_another_crate_is_found() {
        let graph = graph_of(&[("podopsy-recorder", &["aya"]), ("podopsy-probes", &["aya"])]);
        let found = violations(&graph, &["podopsy-recorder".to_owned(), "podopsy-probes".to_owned()]);
        let expected = "podopsy-recorder must not depend on aya: the others get plain bytes and counts → use podopsy-probes";
        assert_eq!(found, [expected]);
    }

    #[test]
    fn only_normal_dependencies_count() {
        let metadata = json!({
            "packages": [{"id": "a#1", "name": "podopsy-model"}, {"id": "b#1", "name": "tokio"},
                         {"id": "c#1", "name": "serde"}],
            "workspace_members": ["a#1"],
            "resolve": {"nodes": [
                {"id": "a#1", "deps": [
                    {"pkg": "b#1", "dep_kinds": [{"kind": "dev"}, {"kind": "build"}]},
                    {"pkg": "c#1", "dep_kinds": [{"kind": "dev"}, {"kind": null}]}]},
                {"id": "c#1", "deps": []}]},
        });
        let graph = graph(&metadata);
        assert_eq!(graph["podopsy-model"], ["serde"]);
        assert!(violations(&graph, &members(&metadata)).is_empty());
    }

    #[test]
    fn the_workspace_crosses_no_wall() {
        let found = check(&sh::root()).unwrap();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
