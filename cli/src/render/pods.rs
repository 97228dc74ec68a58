//! Pods and their containers, one row per container.

use std::io::{self, Write};

use podopsy_pods::{ContainerDetails, PodDetails};

use super::list::TableStyle;
use super::table::TextTable;
use super::units;

/// A pod, and its node where there are several.
pub type PodRow<'a> = (Option<&'a str>, &'a PodDetails);

/// Prints one row per container: its newest attempt, with the reason why the attempt before it ended.
pub fn print(out: &mut impl Write, style: TableStyle, pods: &[PodRow<'_>]) -> io::Result<()> {
    let has_node = pods.first().is_some_and(|(node, _)| node.is_some());
    let mut header = if has_node { vec!["NODE"] } else { Vec::new() };
    header.extend(["NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "LAST REASON", "PID", "MEMORY"]);
    if style.is_wide {
        header.extend(["IP", "CONTAINER ID", "IMAGE"]);
    }
    let mut table = TextTable::new(&header);
    for (node, pod) in pods {
        let mut names: Vec<String> = node.map(str::to_owned).into_iter().collect();
        names.extend([pod.pod.namespace.clone(), pod.pod.name.clone()]);
        if pod.containers.is_empty() {
            let mut row = names.clone();
            row.extend([String::new(), pod.state.clone()]);
            row.resize(header.len(), String::new());
            table.row(row);
        }
        for (container, before) in newest(&pod.containers) {
            let mut row = names.clone();
            row.extend([
                container.container.name.clone(),
                container.state.clone(),
                container.restarts.to_string(),
                last_reason(container, before),
                container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                memory(container),
            ]);
            if style.is_wide {
                row.extend([
                    pod.ips.join(","),
                    short(&container.container.id).to_owned(),
                    container.container.image.clone(),
                ]);
            }
            table.row(row);
        }
    }
    table.print(out, style)
}

/// The newest attempt of each container, with the attempt before it.
pub fn newest(containers: &[ContainerDetails]) -> Vec<(&ContainerDetails, Option<&ContainerDetails>)> {
    let mut sorted: Vec<&ContainerDetails> = containers.iter().collect();
    sorted.sort_by(|a, b| {
        let key = |c: &ContainerDetails| (c.container.attempt, c.started_at);
        a.container.name.cmp(&b.container.name).then_with(|| key(b).cmp(&key(a)))
    });
    sorted
        .chunk_by(|a, b| a.container.name == b.container.name)
        .map(|attempts| (attempts[0], attempts.get(1).copied()))
        .collect()
}

fn last_reason(container: &ContainerDetails, before: Option<&ContainerDetails>) -> String {
    let ended = if container.state == "exited" { Some(container) } else { before };
    ended.map(reason).unwrap_or_default()
}

/// `OOMKilled (137)`: CRI's reason and exit code.
pub fn reason(container: &ContainerDetails) -> String {
    match (container.reason.as_str(), container.exit_code) {
        ("", None) => String::new(),
        ("", Some(code)) => format!("exit code {code}"),
        (reason, None) => reason.to_owned(),
        (reason, Some(code)) => format!("{reason} ({code})"),
    }
}

/// `61.2 MiB / 64.0 MiB`.
fn memory(container: &ContainerDetails) -> String {
    let side = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), units::bytes);
    match (container.memory_usage_bytes, container.memory_limit_bytes) {
        (None, None) => String::new(),
        (usage, limit) => format!("{} / {}", side(usage), side(limit)),
    }
}

/// The 13 characters that crictl prints.
fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

#[cfg(test)]
pub mod tests {
    use podopsy_model::{ContainerRef, PodRef};

    use super::*;
    use crate::terminal::Terminal;

    pub fn container(name: &str, attempt: u32, state: &str) -> ContainerDetails {
        ContainerDetails {
            container: ContainerRef {
                name: name.into(),
                id: "3f2a9c0123456789".into(),
                image: "registry.local/api:1".into(),
                attempt,
            },
            state: state.into(),
            reason: String::new(),
            exit_code: None,
            started_at: None,
            finished_at: None,
            restarts: attempt,
            pid: (state == "running").then_some(4242),
            pids: if state == "running" { vec![4242, 4250] } else { Vec::new() },
            namespaces: [("net".to_owned(), 4026532000), ("pid".to_owned(), 4026532001)].into(),
            cgroup_path: Some("/kubepods/burstable/podu/3f2a9c0123456789".into()),
            cgroup_ids: vec![77],
            memory_limit_bytes: Some(64 << 20),
            memory_usage_bytes: (state == "running").then_some(12 << 20),
            cpu_limit_millis: Some(500),
            ports: Vec::new(),
        }
    }

    pub fn pod(name: &str, containers: Vec<ContainerDetails>) -> PodDetails {
        PodDetails {
            pod: PodRef {
                namespace: "finance".into(),
                name: name.into(),
                uid: "0f0e".into(),
                labels: [("app".to_owned(), name.to_owned())].into(),
            },
            sandbox_id: "5a5b5c5d5e5f".into(),
            state: "ready".into(),
            created_at: None,
            ips: vec!["10.88.0.4".into()],
            netns: Some("/proc/4200/ns/net".into()),
            containers,
        }
    }

    #[test]
    fn a_row_has_the_newest_attempt_and_the_reason_of_the_one_before() {
        let mut dead = container("api", 0, "exited");
        dead.reason = "OOMKilled".into();
        dead.exit_code = Some(137);
        let pods = [pod("checkout-api", vec![dead, container("api", 1, "running")]), pod("empty", vec![])];
        let mut out = Vec::new();
        print(
            &mut out,
            TableStyle { is_wide: true, ..Terminal::PLAIN.into() },
            &[(None, &pods[0]), (None, &pods[1])],
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
NAMESPACE  POD           CONTAINER  STATE    RESTARTS  LAST REASON      PID   MEMORY               IP         CONTAINER ID   IMAGE
finance    checkout-api  api        running  1         OOMKilled (137)  4242  12.0 MiB / 64.0 MiB  10.88.0.4  3f2a9c0123456  registry.local/api:1
finance    empty         -          ready    -         -                -     -                    -          -              -
"
        );
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN.into(), &[(Some("n1"), &pods[1])]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("NODE  NAMESPACE  POD") && text.contains("\nn1    finance    empty"),
            "{text}"
        );
    }
}
