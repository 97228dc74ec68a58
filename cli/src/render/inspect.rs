//! The facts of a pod, a container or a process, as a sheet.

use std::collections::BTreeMap;
use std::io::{self, Write};

use podopsy_model::{KnownBy, Owner, PodRef, Workload, workloads};
use podopsy_pods::{ContainerDetails, PodDetails};

use super::pods::reason;
use super::table::field;
use super::units;
use crate::process::ProcessDetails;
use crate::terminal::Terminal;

/// Writes the sheet: sections with a heading, each with lines of keys and values.
#[derive(Debug)]
pub struct Sheet<'a, W> {
    out: &'a mut W,
    terminal: Terminal,
    started: bool,
}

impl<'a, W: Write> Sheet<'a, W> {
    pub fn new(out: &'a mut W, terminal: Terminal) -> Self {
        Sheet { out, terminal, started: false }
    }

    fn head(&mut self, kind: &str, name: &str) -> io::Result<()> {
        if std::mem::replace(&mut self.started, true) {
            writeln!(self.out)?;
        }
        field(self.out, self.terminal, kind, name)
    }

    /// Writes a line, unless the value is empty.
    fn field(&mut self, key: &str, value: &str) -> io::Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        field(self.out, self.terminal, &format!("  {key}"), value)
    }

    /// Writes the pod. `sandbox` is the runtime's report of it, if there is one.
    pub fn pod(&mut self, pod: &PodRef, sandbox: Option<&PodDetails>) -> io::Result<()> {
        self.head("Pod", &format!("{}/{}", pod.namespace, pod.name))?;
        self.field("uid", &pod.uid)?;
        self.field("workload", &workload(pod))?;
        self.field("labels", &labels(&pod.labels))?;
        let Some(sandbox) = sandbox else { return Ok(()) };
        self.field("state", &sandbox.state)?;
        self.field("created", &sandbox.created_at.map(units::date).unwrap_or_default())?;
        self.field("ips", &sandbox.ips.join(", "))?;
        self.field("sandbox", &sandbox.sandbox_id)?;
        self.field("netns", sandbox.netns.as_deref().unwrap_or("the host's"))
    }

    pub fn container(&mut self, container: &ContainerDetails) -> io::Result<()> {
        self.head("Container", &container.container.name)?;
        self.field("id", &container.container.id)?;
        self.field("image", &container.container.image)?;
        self.field("state", &state(container))?;
        self.field("restarts", &container.restarts.to_string())?;
        self.field("pid", &container.pid.map(|pid| pid.to_string()).unwrap_or_default())?;
        self.field("pids", &list(&container.pids))?;
        self.field("memory", &memory(container))?;
        let cpu = container.cpu_limit_millis.map_or_else(|| "no limit".to_owned(), |m| format!("limit {m}m"));
        self.field("cpu", &cpu)?;
        self.field("cgroup", container.cgroup_path.as_deref().unwrap_or_default())?;
        self.field("cgroup ids", &list(&container.cgroup_ids))?;
        self.field("namespaces", &namespaces(&container.namespaces))
    }

    pub fn process(&mut self, process: &ProcessDetails) -> io::Result<()> {
        self.head("Process", &format!("{}[{}]", process.comm, process.pid))?;
        self.field("started", &process.start_time.map(units::date).unwrap_or_default())?;
        self.field("parent", &process.parent_pid.map(|pid| pid.to_string()).unwrap_or_default())?;
        self.field("uid", &process.uid.map(|uid| uid.to_string()).unwrap_or_default())?;
        // With one entry, no inner namespace gives the process another id.
        if process.pid_in_namespaces.len() > 1 {
            self.field("inside as", &list(&process.pid_in_namespaces[1..]))?;
        }
        self.field("threads", &process.threads.map(|count| count.to_string()).unwrap_or_default())?;
        self.field("rss", &process.rss_bytes.map(units::bytes).unwrap_or_default())?;
        self.field("namespaces", &namespaces(&process.namespaces))
    }

    /// Writes the owner, and the source of its names.
    pub fn owner(&mut self, owner: &Owner) -> io::Result<()> {
        let container = owner.container.as_ref().map(|container| format!("/{}", container.name));
        let name = match (&owner.pod, owner.known_by) {
            (Some(pod), _) => format!("{}/{}{}", pod.namespace, pod.name, container.unwrap_or_default()),
            (None, KnownBy::Host) => "the host: in no container".to_owned(),
            (None, _) => "not known".to_owned(),
        };
        self.head("Owner", &name)?;
        self.field("known by", known_by(owner.known_by))?;
        self.field("cgroup", owner.cgroup.path.as_deref().unwrap_or_default())?;
        self.field(
            "cgroup id",
            &if owner.cgroup.id == 0 { String::new() } else { owner.cgroup.id.to_string() },
        )
    }
}

fn known_by(how: KnownBy) -> &'static str {
    match how {
        KnownBy::Cri => "the container runtime (CRI)",
        KnownBy::LogDirectory => "the log directory's name; labels and image are not known",
        KnownBy::CgroupPath => "the cgroup's path; no source has its names",
        KnownBy::Inside => "the pod itself: its host name, resolv.conf, mounts and cgroup paths",
        KnownBy::Host => "the cgroup's path, which belongs to no container",
        KnownBy::Unknown => "nothing: the cgroup is not known",
    }
}

fn state(container: &ContainerDetails) -> String {
    let when = match container.state.as_str() {
        "running" => container.started_at.map(|time| format!(" since {}", units::date(time))),
        "exited" => container.finished_at.map(|time| format!(" at {}", units::date(time))),
        _ => None,
    };
    let reason = match reason(container) {
        reason if container.state == "exited" && !reason.is_empty() => format!(": {reason}"),
        _ => String::new(),
    };
    format!("{}{}{reason}", container.state, when.unwrap_or_default())
}

fn memory(container: &ContainerDetails) -> String {
    let limit = container
        .memory_limit_bytes
        .map_or_else(|| "no limit".to_owned(), |l| format!("limit {}", units::bytes(l)));
    match (container.memory_usage_bytes, container.memory_limit_bytes) {
        (None, _) => limit,
        (Some(usage), Some(max)) if max > 0 => {
            format!("{}, {limit} ({:.0} %)", units::bytes(usage), usage as f64 * 100.0 / max as f64)
        }
        (Some(usage), _) => format!("{}, {limit}", units::bytes(usage)),
    }
}

/// The controllers of a pod; empty if none can be inferred.
pub fn workload(pod: &PodRef) -> String {
    let names: Vec<String> = workloads(pod).iter().map(Workload::to_string).collect();
    if names.is_empty() { String::new() } else { format!("{} (by its labels and name)", names.join(", ")) }
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("\n")
}

fn namespaces(inodes: &BTreeMap<String, u64>) -> String {
    inodes.iter().map(|(kind, inode)| format!("{kind} {inode}")).collect::<Vec<_>>().join(", ")
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::pods::tests::{container, pod};
    use super::*;

    #[test]
    fn a_sheet_shows_a_pod_and_its_container() {
        let mut running = container("api", 1, "running");
        running.started_at = Some("2026-03-01T03:04:05Z".parse().unwrap());
        let pod = pod("checkout-api", vec![running]);
        let mut out = Vec::new();
        let mut sheet = Sheet::new(&mut out, Terminal::PLAIN);
        sheet.pod(&pod.pod, Some(&pod)).unwrap();
        sheet.container(&pod.containers[0]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
Pod          finance/checkout-api
  uid        0f0e
  labels     app=checkout-api
  state      ready
  ips        10.88.0.4
  sandbox    5a5b5c5d5e5f
  netns      /proc/4200/ns/net

Container    api
  id         3f2a9c0123456789
  image      registry.local/api:1
  state      running since 2026-03-01 03:04:05Z
  restarts   1
  pid        4242
  pids       4242, 4250
  memory     12.0 MiB, limit 64.0 MiB (19 %)
  cpu        limit 500m
  cgroup     /kubepods/burstable/podu/3f2a9c0123456789
  cgroup ids 77
  namespaces net 4026532000, pid 4026532001
"
        );
    }

    #[test]
    fn a_sheet_shows_a_host_process() {
        let process = ProcessDetails {
            pid: 7,
            comm: "sshd".into(),
            start_time: None,
            parent_pid: Some(1),
            uid: Some(0),
            pid_in_namespaces: vec![7],
            threads: Some(1),
            rss_bytes: Some(2048),
            namespaces: BTreeMap::new(),
        };
        let owner = Owner { known_by: KnownBy::Host, ..Owner::default() };
        let mut out = Vec::new();
        let mut sheet = Sheet::new(&mut out, Terminal::PLAIN);
        sheet.process(&process).unwrap();
        sheet.owner(&owner).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
Process      sshd[7]
  parent     1
  uid        0
  threads    1
  rss        2.0 KiB

Owner        the host: in no container
  known by   the cgroup's path, which belongs to no container
"
        );
    }

    #[test]
    fn the_state_of_an_exited_container_has_its_reason() {
        let mut dead = container("api", 0, "exited");
        dead.reason = "OOMKilled".into();
        dead.exit_code = Some(137);
        assert_eq!(state(&dead), "exited: OOMKilled (137)");
    }
}
