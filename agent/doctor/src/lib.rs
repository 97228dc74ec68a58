//! Checks what this machine, its kernel and the capabilities of this process allow, and gives a remedy for the rest.
//!
//! | module | question |
//! |---|---|
//! | `machine` | reads files below a root folder, so that tests can use a fake machine |
//! | [`capability`] | what may this process do? |
//! | `kernel` | what was the kernel built and configured for? |
//! | `mount` | which filesystems and namespaces can be seen from here? |
//! | this one | did the probes load, does a runtime answer? It also builds the report. |
//!
//! This crate must not depend on aya (the results of the probes are passed in), CRI or rendering.
//!
//! Every check that is not `ok` has a remedy. `missing` is used only for what events or profiles need; what only affects
//! names or accuracy is `degraded`.

pub mod capability;
mod kernel;
mod machine;
mod mount;

use serde::{Deserialize, Serialize};

use machine::Machine;
use podopsy_model::probe::ProbeCheck;
use podopsy_pods as pods;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    Ok,
    /// podopsy works with less detail; the finding names what is lost.
    Degraded,
    /// A main function of podopsy does not work.
    Missing,
}

/// The section of the report that a check belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckGroup {
    Kernel,
    Capability,
    Mount,
    Probe,
    Runtime,
}

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub group: CheckGroup,
    pub status: CheckStatus,
    /// The finding as text.
    pub found: String,
    /// The command or manifest line that solves the problem; null: there is no problem, or no remedy. JSON: `mend`.
    #[serde(rename = "mend")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(group: CheckGroup, name: &str, found: impl Into<String>) -> Self {
        Check { name: name.to_owned(), group, status: CheckStatus::Ok, found: found.into(), remedy: None }
    }

    fn degraded(group: CheckGroup, name: &str, found: impl Into<String>, remedy: &str) -> Self {
        Check {
            status: CheckStatus::Degraded,
            remedy: Some(remedy.to_owned()),
            ..Check::ok(group, name, found)
        }
    }

    fn missing(group: CheckGroup, name: &str, found: impl Into<String>, remedy: &str) -> Self {
        Check {
            status: CheckStatus::Missing,
            remedy: Some(remedy.to_owned()),
            ..Check::ok(group, name, found)
        }
    }
}

/// All checks, in the order in which their problems are best solved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// The number of checks with this status.
    pub fn count(&self, status: CheckStatus) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    /// Whether no check is `missing`.
    pub fn is_sound(&self) -> bool {
        self.count(CheckStatus::Missing) == 0
    }
}

/// Checks the machine, and adds the results of the probes and of the runtime.
pub fn report(probes: Vec<ProbeCheck>, pods: &pods::PodsStatus) -> Report {
    report_on(&Machine::host(), probes, pods)
}

fn report_on(machine: &Machine, probes: Vec<ProbeCheck>, pods: &pods::PodsStatus) -> Report {
    let capabilities = machine.capabilities();
    let mut checks = kernel::checks(machine, capabilities);
    checks.extend(capability::checks(machine, capabilities));
    checks.extend(mount::checks(machine));
    checks.extend(probes.into_iter().map(probe_check));
    checks.extend(runtime_checks(machine, pods));
    Report { checks }
}

/// Why the DNS probe cannot see pods from here. None: no reason was found.
pub fn dns_out_of_reach() -> Option<String> {
    mount::dns_out_of_reach(&Machine::host())
}

fn probe_check(probe: ProbeCheck) -> Check {
    let (status, found, remedy) = match probe.outcome {
        Ok(found) => (CheckStatus::Ok, found, None),
        Err(found) => (CheckStatus::Missing, found, probe.remedy),
    };
    Check { name: probe.name, group: CheckGroup::Probe, status, found, remedy }
}

/// Without a runtime podopsy still records the host's processes, so nothing here is ever `missing`.
fn runtime_checks(machine: &Machine, pods: &pods::PodsStatus) -> Vec<Check> {
    let group = CheckGroup::Runtime;
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
            "name the runtime's socket with --cri-socket PATH; in a pod: hostPID: true and securityContext.capabilities.add: [\"SYS_PTRACE\"]",
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
    fn a_probe_that_fails_is_missing_and_has_a_remedy() {
        let probes = vec![
            ProbeCheck {
                name: "oom".into(),
                outcome: Ok("oom:mark_victim".into()),
                remedy: Some("x".into()),
            },
            ProbeCheck { name: "dns".into(), outcome: Err("EPERM".into()), remedy: Some("fix it".into()) },
        ];
        let report = report_on(&Machine::at("/nonexistent"), probes, &pods::PodsStatus::default());
        assert_eq!(find(&report, "oom").status, CheckStatus::Ok);
        assert_eq!(find(&report, "oom").remedy, None);
        assert_eq!(find(&report, "dns").status, CheckStatus::Missing);
        assert_eq!(find(&report, "dns").remedy.as_deref(), Some("fix it"));
        assert!(!report.is_sound());
    }

    #[test]
    fn on_an_empty_machine_every_missing_check_has_a_remedy() {
        let report = report_on(&Machine::at("/nonexistent"), Vec::new(), &pods::PodsStatus::default());
        for check in report.checks.iter().filter(|check| check.status == CheckStatus::Missing) {
            assert!(check.remedy.is_some(), "{check:?}");
        }
        assert!(report.count(CheckStatus::Missing) > 3);
    }

    #[test]
    fn a_runtime_that_does_not_answer_is_degraded() {
        let status = pods::PodsStatus {
            cri_socket: Some("/run/containerd/containerd.sock".into()),
            cri_error: Some("timed out after 2 s".into()),
            ..Default::default()
        };
        let report = report_on(&Machine::at("/nonexistent"), Vec::new(), &status);
        let cri = find(&report, "cri");
        assert_eq!(cri.status, CheckStatus::Degraded);
        assert!(cri.found.contains("timed out after 2 s"), "{}", cri.found);
    }

    #[test]
    fn the_json_has_its_documented_fields() {
        let report = Report {
            checks: vec![Check::missing(CheckGroup::Mount, "tracefs", "not mounted", "mount -t tracefs …")],
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"checks":[{"name":"tracefs","group":"mount","status":"missing","found":"not mounted","mend":"mount -t tracefs …"}]}"#
        );
    }
}
