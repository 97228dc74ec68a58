//! The ports that a container declares, as the kubelet notes them for itself: a list of v1.ContainerPort as JSON.

use serde::{Deserialize, Serialize};

use crate::text::field;

/// Ports of one container; the API server bounds them only by the size of the pod.
const PORTS_MAX: usize = 256;

/// A port that a container declares. It is documentation: a container can listen without declaring, and declare without
/// listening.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    #[serde(default)]
    pub name: String,
    #[serde(alias = "containerPort")]
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(default = "tcp")]
    pub protocol: String,
}

fn tcp() -> String {
    "TCP".to_owned()
}

/// Nothing if the annotation is not what the kubelet writes.
pub(crate) fn parse(annotation: &str) -> Vec<ContainerPort> {
    let ports: Vec<ContainerPort> = serde_json::from_str(annotation).unwrap_or_default();
    let escaped = |port: ContainerPort| ContainerPort {
        name: field(&port.name),
        protocol: field(&port.protocol),
        ..port
    };
    ports.into_iter().take(PORTS_MAX).map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_the_kubelet_writes_them() {
        let ports = parse(
            r#"[{"name":"http\u001b","containerPort":8080,"protocol":"TCP"},{"hostPort":1,"containerPort":53,"protocol":"UDP"},{"containerPort":1}]"#,
        );
        let all: Vec<_> = ports.iter().map(|port| (port.port, port.protocol.as_str())).collect();
        assert_eq!(all, [(8080, "TCP"), (53, "UDP"), (1, "TCP")]);
        assert_eq!(ports[0].name, "http\\x1b");
        for wrong in ["", "{}", r#"[{"containerPort":70000}]"#, "[7]"] {
            assert!(parse(wrong).is_empty(), "{wrong}");
        }
        let many = format!("[{}]", vec![r#"{"containerPort":1}"#; 5000].join(","));
        assert_eq!(parse(&many).len(), PORTS_MAX);
    }
}
