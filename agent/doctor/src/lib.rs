//! What this machine, kernel and set of capabilities allow, and what would mend the rest.
//!
//! | file | asks |
//! |---|---|
//! | `machine` | reads files below a root, so that tests can stand up another machine |
//! | [`capability`] | what may this process do? |
//! | `kernel` | what was the kernel built and configured for? |
//! | `mount` | which filesystems and namespaces can be seen from here? |
//! | here | did the probes load, does a runtime answer? and the report |
//!
//! Must not know: aya (a probe's outcome is handed in), CRI, how a report is rendered.
//!
//! Every check that is not `ok` says what would mend it. `missing` is said only of what events or
//! profiles cannot do without; what merely costs names or accuracy is `degraded`.

pub mod capability;
mod kernel;
mod machine;
mod mount;

use serde::Serialize;

use machine::Machine;
use podopsy_model::probe::ProbeCheck;
use podopsy_pods as pods;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// podopsy works, with less to say: the finding tells what is lost.
    Degraded,
    /// Something that podopsy is for does not work.
    Missing,
}

/// Where a check belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    Kernel,
    Capability,
    Mount,
    Probe,
    Runtime,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub group: Group,
    pub status: Status,
    /// What was found, in words.
    pub found: String,
    /// The command or manifest line that would mend it; null: nothing to mend, or nothing can.
    pub mend: Option<String>,
}

impl Check {
    fn ok(group: Group, name: &str, found: impl Into<String>) -> Self {
        Check { name: name.to_owned(), group, status: Status::Ok, found: found.into(), mend: None }
    }

    fn degraded(group: Group, name: &str, found: impl Into<String>, mend: &str) -> Self {
        Check { status: Status::Degraded, mend: Some(mend.to_owned()), ..Check::ok(group, name, found) }
    }

    fn missing(group: Group, name: &str, found: impl Into<String>, mend: &str) -> Self {
        Check { status: Status::Missing, mend: Some(mend.to_owned()), ..Check::ok(group, name, found) }
    }
}

/// Everything that was looked at, in the order in which it is best mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// How many checks have this status.
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    /// True if nothing load-bearing is missing.
    pub fn is_sound(&self) -> bool {
        self.count(Status::Missing) == 0
    }
}

/// Looks at the machine, and puts that beside what the probes and the runtime said.
pub fn report(probes: Vec<ProbeCheck>, pods: &pods::Status) -> Report {
    report_on(&Machine::host(), probes, pods)
}

fn report_on(machine: &Machine, probes: Vec<ProbeCheck>, pods: &pods::Status) -> Report {
    let capabilities = machine.capabilities();
    let mut checks = kernel::checks(machine, capabilities);
    checks.extend(capability::checks(machine, capabilities));
    checks.extend(mount::checks(machine));
    checks.extend(probes.into_iter().map(probe_check));
    checks.extend(runtime_checks(machine, pods));
    Report { checks }
}

/// Why the dns probe cannot see pods from here; None: nothing speaks against it.
pub fn dns_out_of_reach() -> Option<String> {
    mount::dns_out_of_reach(&Machine::host())
}

fn probe_check(probe: ProbeCheck) -> Check {
    let (status, found, mend) = match probe.outcome {
        Ok(found) => (Status::Ok, found, None),
        Err(found) => (Status::Missing, found, probe.mend),
    };
    Check { name: probe.name, group: Group::Probe, status, found, mend }
}

/// Without a runtime podopsy still records the host's processes, so nothing here is ever `missing`.
fn runtime_checks(machine: &Machine, pods: &pods::Status) -> Vec<Check> {
    let group = Group::Runtime;
    let socket = pods.cri_socket.as_deref().map(machine::shown);
    let cri = match (socket, &pods.runtime) {
        (Some(socket), Some(runtime)) => Check::ok(group, "cri", format!("{runtime} at {socket}")),
        (Some(socket), None) => Check::degraded(
            group,
            "cri",
            format!(
                "{socket} does not answer ({}): pods are named from log directories and cgroup paths only",
                pods.cri_error.as_deref().unwrap_or("no reason given")
            ),
            "start the container runtime, or name its socket with --cri-socket PATH",
        ),
        (None, _) => Check::degraded(
            group,
            "cri",
            pods.cri_error.clone().unwrap_or_else(|| {
                "no socket found: pods are named from log directories and cgroup paths only".to_owned()
            }),
            "name the runtime's socket with --cri-socket PATH; in a pod also mount its folder (hostPath: /run/containerd)",
        ),
    };
    let logs = if machine.exists("/var/log/pods") {
        Check::ok(group, "log-directories", "/var/log/pods")
    } else if pods.runtime.is_some() {
        Check::ok(group, "log-directories", "no /var/log/pods; not needed while the runtime answers")
    } else {
        Check::degraded(
            group,
            "log-directories",
            "no /var/log/pods: nothing names pods when the runtime does not",
            "in a pod: mount hostPath: /var/log/pods, readOnly: true",
        )
    };
    let containers = Check::ok(
        group,
        "containers",
        format!("{} known, {} dead ones remembered", pods.containers_known, pods.containers_remembered_dead),
    );
    vec![cri, logs, containers]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(report: &'a Report, name: &str) -> &'a Check {
        report.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"))
    }

    #[test]
    fn a_probe_that_fails_is_missing_and_keeps_its_mend() {
        let probes = vec![
            ProbeCheck { name: "oom".into(), outcome: Ok("oom:mark_victim".into()), mend: Some("x".into()) },
            ProbeCheck { name: "dns".into(), outcome: Err("EPERM".into()), mend: Some("mend it".into()) },
        ];
        let report = report_on(&Machine::at("/nonexistent"), probes, &pods::Status::default());
        assert_eq!(find(&report, "oom").status, Status::Ok);
        assert_eq!(find(&report, "oom").mend, None);
        assert_eq!(find(&report, "dns").status, Status::Missing);
        assert_eq!(find(&report, "dns").mend.as_deref(), Some("mend it"));
        assert!(!report.is_sound());
    }

    #[test]
    fn an_empty_machine_gives_a_report_and_every_gap_has_its_mend() {
        let report = report_on(&Machine::at("/nonexistent"), Vec::new(), &pods::Status::default());
        for check in report.checks.iter().filter(|check| check.status == Status::Missing) {
            assert!(check.mend.is_some(), "{check:?}");
        }
        assert!(report.count(Status::Missing) > 3);
    }

    #[test]
    fn a_silent_runtime_is_degraded_never_missing() {
        let status = pods::Status {
            cri_socket: Some("/run/containerd/containerd.sock".into()),
            cri_error: Some("timed out after 2 s".into()),
            ..Default::default()
        };
        let report = report_on(&Machine::at("/nonexistent"), Vec::new(), &status);
        let cri = find(&report, "cri");
        assert_eq!(cri.status, Status::Degraded);
        assert!(cri.found.contains("timed out after 2 s"), "{}", cri.found);
    }

    #[test]
    fn the_shape_of_the_json() {
        let report = Report {
            checks: vec![Check::missing(Group::Mount, "tracefs", "not mounted", "mount -t tracefs …")],
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"checks":[{"name":"tracefs","group":"mount","status":"missing","found":"not mounted","mend":"mount -t tracefs …"}]}"#
        );
    }
}
