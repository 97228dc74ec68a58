//! A stream to one agent's socket.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use podopsy_client::{AgentClient, ClientError};
use tokio::net::UnixStream;

use crate::agents::{Agent, NodeFailure};
use crate::kubectl::{Call, Kubectl, KubectlError};

/// A response of one agent: a page of events, or the pods of a node.
const RESPONSE_BYTES_MAX: usize = 16 << 20;
/// How long a bridge that has failed may take to say why.
const REASON_WITHIN: Duration = Duration::from_secs(2);

/// How agents are reached.
#[derive(Clone, Debug)]
pub enum Transport {
    /// `kubectl exec` of `podopsy bridge` in the agent's pod. RBAC decides who may.
    Kubectl(Kubectl),
    /// Sockets in a folder, each named NODE.sock: forwarded by ssh, or of a test.
    Sockets(PathBuf),
}

/// An open way to an agent. Dropping it closes it.
pub struct Connection {
    pub client: AgentClient,
    bridge: Option<Call>,
}

impl Transport {
    pub async fn connect(&self, agent: &Agent) -> Result<Connection, NodeFailure> {
        let opened = match self {
            Transport::Kubectl(kubectl) => {
                let bridge = [OsString::from("bridge")];
                let call = Call::start(kubectl.exec_command(agent, &bridge, true));
                let mut call = call.map_err(|error| kubectl_failure(agent, error))?;
                let (stdout, stdin) = (call.child.stdout.take(), call.child.stdin.take());
                let (Some(stdout), Some(stdin)) = (stdout, stdin) else {
                    return Err(NodeFailure::new(&agent.node, "kubectl has no stdin and stdout"));
                };
                let stream = tokio::io::join(stdout, stdin);
                AgentClient::over(stream, &agent.node).await.map(|client| (client, Some(call)))
            }
            Transport::Sockets(folder) => {
                let path = folder.join(format!("{}.sock", agent.node));
                let stream = UnixStream::connect(&path).await;
                let stream = stream.map_err(|error| NodeFailure::new(&agent.node, error.to_string()))?;
                AgentClient::over(stream, &agent.node).await.map(|client| (client, None))
            }
        };
        let (client, bridge) = opened.map_err(|error| client_failure(agent, &error))?;
        Ok(Connection { client: client.with_response_bytes_max(RESPONSE_BYTES_MAX), bridge })
    }
}

impl Connection {
    /// Why a request failed: the bridge's own reason, if it has ended, or else the client's.
    pub async fn failure(self, agent: &Agent, error: &ClientError) -> NodeFailure {
        if let (ClientError::Unreachable { .. } | ClientError::InvalidResponse(_), Some(bridge)) =
            (error, self.bridge)
            && let Ok(Err(reason)) = tokio::time::timeout(REASON_WITHIN, bridge.end()).await
        {
            return kubectl_failure(agent, reason);
        }
        client_failure(agent, error)
    }
}

fn client_failure(agent: &Agent, error: &ClientError) -> NodeFailure {
    let reason = match error {
        ClientError::Unreachable { reason, .. } => format!("the connection to its agent failed: {reason}"),
        ClientError::NotPermitted(_) | ClientError::Refused(_) | ClientError::InvalidResponse(_) => {
            error.to_string()
        }
    };
    NodeFailure::new(&agent.node, reason)
}

/// The failure of a call of kubectl, with the pod's name left out: nodes with the same reason are named together.
pub fn kubectl_failure(agent: &Agent, error: KubectlError) -> NodeFailure {
    let is_forbidden = matches!(error, KubectlError::Forbidden(_));
    let reason = error.to_string().replace(&agent.pod, "its pod");
    NodeFailure { node: agent.node.clone(), reason, is_forbidden }
}
