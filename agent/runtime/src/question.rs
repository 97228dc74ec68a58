//! What can be asked of the runtime, and the answers. Every question reads; CRI has no other call that podopsy makes.
//!
//! The answers have the fields that podopsy uses. The rest, such as a container's environment in the verbose part, stays in the
//! process that asks.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cri::messages::{
    Container, ContainerStatus, ContainerStatusResponse, PodSandbox, PodSandboxStatus,
    PodSandboxStatusResponse,
};

/// The annotations that podopsy uses.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const PORTS: &str = "io.kubernetes.container.ports";
const ANNOTATIONS: [&str; 2] = [RESTART_COUNT, PORTS];

/// A question. There is no way to ask for more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Find the runtime, and connect to it. Answer: [`Answer::Connected`].
    Connect,
    /// CRI's ContainerStatus. Answer: [`Answer::Container`].
    Container { id: String },
    /// CRI's ListContainers. Answer: [`Answer::Containers`].
    Containers { id: Option<String> },
    /// CRI's PodSandboxStatus. Answer: [`Answer::Sandbox`].
    Sandbox { id: String },
    /// CRI's ListPodSandbox. Answer: [`Answer::Sandboxes`].
    Sandboxes { pod_uid: Option<String> },
    /// Does not answer, nor any other question.
    #[cfg(feature = "testing")]
    Hang,
    /// Answers with more bytes than an answer may have.
    #[cfg(feature = "testing")]
    TooMuch,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Connected,
    Container(Box<ContainerReport>),
    Containers(Vec<Container>),
    Sandbox(Box<SandboxReport>),
    Sandboxes(Vec<PodSandbox>),
}

/// What the runtime reports of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerReport {
    pub status: Option<ContainerStatus>,
    pub info: RuntimeInfo,
}

/// What the runtime reports of a pod sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxReport {
    pub status: Option<PodSandboxStatus>,
    pub info: RuntimeInfo,
}

/// What podopsy uses of the verbose part of a status, which is specific to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeInfo {
    pub sandbox_id: Option<String>,
    /// In the runtime's own pid namespace.
    pub pid: Option<u32>,
    /// `linux.cgroupsPath` of the OCI spec: where the runtime has put it. containerd and CRI-O report it, cri-dockerd does not.
    pub cgroups_path: Option<String>,
    /// The image as the pod's spec names it.
    pub image: Option<String>,
    /// Bytes, and microseconds, as in the OCI spec.
    pub memory_limit: Option<u64>,
    pub cpu_quota: Option<u64>,
    pub cpu_period: Option<u64>,
}

impl RuntimeInfo {
    /// containerd and CRI-O put one JSON object under `info`.
    fn read(verbose: &HashMap<String, String>) -> RuntimeInfo {
        let object: Value =
            verbose.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let number = |at: &str| object.pointer(at).and_then(Value::as_u64);
        RuntimeInfo {
            sandbox_id: text("/sandboxID"),
            pid: number("/pid").and_then(|pid| u32::try_from(pid).ok()),
            cgroups_path: text("/runtimeSpec/linux/cgroupsPath").filter(|path| !path.is_empty()),
            image: text("/config/image/user_specified_image"),
            memory_limit: number("/runtimeSpec/linux/resources/memory/limit"),
            cpu_quota: number("/runtimeSpec/linux/resources/cpu/quota"),
            cpu_period: number("/runtimeSpec/linux/resources/cpu/period"),
        }
    }
}

impl From<ContainerStatusResponse> for ContainerReport {
    fn from(response: ContainerStatusResponse) -> ContainerReport {
        let mut status = response.status;
        if let Some(status) = &mut status {
            status.annotations.retain(|key, _| ANNOTATIONS.contains(&key.as_str()));
        }
        ContainerReport { status, info: RuntimeInfo::read(&response.info) }
    }
}

impl From<PodSandboxStatusResponse> for SandboxReport {
    fn from(response: PodSandboxStatusResponse) -> SandboxReport {
        SandboxReport { status: response.status, info: RuntimeInfo::read(&response.info) }
    }
}

/// A container of a list without what podopsy does not use.
pub(crate) fn listed(mut container: Container) -> Container {
    container.labels = HashMap::new();
    container.annotations.retain(|key, _| ANNOTATIONS.contains(&key.as_str()));
    container
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CallError {
    /// The runtime works and does not know the object.
    #[error("not found")]
    NotFound,
    /// The runtime works and returned an error, or more than an answer may have.
    #[error("{0}")]
    Refused(String),
    /// The runtime does not work, or did not a moment ago, in which case the call was not made.
    #[error("{0}")]
    Down(String),
}

impl CallError {
    pub(crate) fn mismatched() -> CallError {
        CallError::Refused("the answer is not to the question".to_owned())
    }
}

/// The connection to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    pub socket: Option<String>,
    /// RuntimeName and RuntimeVersion of CRI's Version call.
    pub version: Option<String>,
    /// The process that listens on the socket.
    pub pid: Option<u32>,
    /// The text of the last error.
    pub error: Option<String>,
    /// Calls that failed.
    pub errors: u64,
    /// No call is made for so long.
    pub back_off: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_used_of_a_verbose_status_leaves_the_process_that_asks() {
        let info = r#"{"sandboxID": "s", "pid": 17, "config": {"envs": [{"key": "TOKEN", "value": "secret"}],
            "image": {"user_specified_image": "registry/a:1"}}, "runtimeSpec": {"process": {"env": ["TOKEN=secret"]},
            "linux": {"cgroupsPath": "/kubepods/pod1/c", "resources": {"memory": {"limit": 5},
            "cpu": {"quota": 10, "period": 20}}}}}"#;
        let annotations = [(RESTART_COUNT.to_owned(), "3".to_owned()), ("a".to_owned(), "secret".to_owned())];
        let status = ContainerStatus { annotations: annotations.into(), ..Default::default() };
        let response = ContainerStatusResponse {
            status: Some(status),
            info: [("info".to_owned(), info.to_owned())].into(),
        };
        let report = ContainerReport::from(response);
        let expected = RuntimeInfo {
            sandbox_id: Some("s".into()),
            pid: Some(17),
            cgroups_path: Some("/kubepods/pod1/c".into()),
            image: Some("registry/a:1".into()),
            memory_limit: Some(5),
            cpu_quota: Some(10),
            cpu_period: Some(20),
        };
        assert_eq!(report.info, expected);
        assert!(!format!("{report:?}").contains("secret"));
        assert_eq!(report.status.unwrap().annotations.len(), 1);
        let broken = [("info".to_owned(), "{".to_owned())].into();
        assert_eq!(RuntimeInfo::read(&broken), RuntimeInfo::default());
    }
}
