//! Asks the container runtime by CRI: in this process, or through a runtime reader.
//!
//! A runtime reader is a helper: a process of the same program that reads from the runtime's socket, which is root on the node.
//! The agent cannot connect to a Unix socket itself. The reader asks the questions of [`Question`] and no other ones: the agent
//! cannot have it create, exec, stop or remove anything.
//!
//! ```text
//! RuntimeReader ── Question ──▶ runtime reader ── CRI, read-only ──▶ containerd, CRI-O, cri-dockerd
//!       │        ◀── Answer ──
//!       └── control socket ──▶ supervisor (podopsy-helper) ── fork ──▶ runtime reader
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`cri`] | CRI's messages, and gRPC |
//! | [`RuntimeClient`] | finds the runtime, and asks it, with time limits and a back-off |
//! | [`question`](Question) | what can be asked, and the answers |
//! | `jail` | what the reader gives up |
//! | `serve` | the reader's loop |
//! | `frames` | questions and answers over the reader's socket |
//! | [`RuntimeReader`] | the agent's side: time limits, and replacement |
//!
//! Must not depend on: cgroups, pods, the meaning of the answers, aya.

mod client;
pub mod cri;
mod frames;
mod jail;
mod question;
mod reader;
mod serve;

use std::path::PathBuf;

pub use client::{NodeRoot, RuntimeClient};
pub use question::{
    Answer, CallError, ConnectionStatus, ContainerReport, PORTS, Question, RuntimeInfo, SandboxReport,
};
pub use reader::{ReaderOptions, RuntimeReader};
pub use serve::run_if_asked;

use cri::messages::{Container, PodSandbox};

/// The runtime, as it is reached from this process.
#[derive(Debug)]
pub enum Runtime {
    /// This process connects to the socket: for commands.
    Direct(Box<RuntimeClient>),
    /// A process of its own does: for the agent.
    Reader(RuntimeReader),
}

impl Runtime {
    /// Finds and connects to the runtime if that was not done yet. The error is kept for [`Runtime::about`].
    pub async fn connect(&self) -> Result<(), CallError> {
        match self.ask(Question::Connect).await? {
            Answer::Connected => Ok(()),
            _ => Err(CallError::mismatched()),
        }
    }

    /// One container.
    pub async fn container(&self, id: &str) -> Result<ContainerReport, CallError> {
        match self.ask(Question::Container { id: id.to_owned() }).await? {
            Answer::Container(report) => Ok(*report),
            _ => Err(CallError::mismatched()),
        }
    }

    /// All containers, or the one with an id.
    pub async fn containers(&self, id: Option<&str>) -> Result<Vec<Container>, CallError> {
        match self.ask(Question::Containers { id: id.map(str::to_owned) }).await? {
            Answer::Containers(list) => Ok(list),
            _ => Err(CallError::mismatched()),
        }
    }

    /// One pod sandbox.
    pub async fn sandbox(&self, id: &str) -> Result<SandboxReport, CallError> {
        match self.ask(Question::Sandbox { id: id.to_owned() }).await? {
            Answer::Sandbox(report) => Ok(*report),
            _ => Err(CallError::mismatched()),
        }
    }

    /// All pod sandboxes, or those of the pod with a uid.
    pub async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<PodSandbox>, CallError> {
        match self.ask(Question::Sandboxes { pod_uid: pod_uid.map(str::to_owned) }).await? {
            Answer::Sandboxes(list) => Ok(list),
            _ => Err(CallError::mismatched()),
        }
    }

    async fn ask(&self, question: Question) -> Result<Answer, CallError> {
        match self {
            Runtime::Direct(client) => client.ask(question).await,
            Runtime::Reader(reader) => reader.ask(question).await,
        }
    }

    /// The socket, `name version` of the runtime, and the last error.
    pub fn about(&self) -> (Option<PathBuf>, Option<String>, Option<String>) {
        let ConnectionStatus { socket, version, error, .. } = self.status();
        (socket.map(PathBuf::from), version, error)
    }

    /// The process that listened on the socket when the connection was made. None: there is no connection, or the process
    /// is in a pid namespace that is not visible here.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Runtime::Direct(client) => client.pid(),
            Runtime::Reader(reader) => reader.pid(),
        }
    }

    /// Calls that failed.
    pub fn errors(&self) -> u64 {
        self.status().errors
    }

    /// Whether the back-off is over, so that a call would be made.
    pub fn is_ready(&self) -> bool {
        match self {
            Runtime::Direct(client) => client.is_ready(),
            Runtime::Reader(reader) => reader.is_ready(),
        }
    }

    /// Runtime readers that were lost.
    pub fn readers_lost(&self) -> u64 {
        match self {
            Runtime::Direct(_) => 0,
            Runtime::Reader(reader) => reader.lost(),
        }
    }

    fn status(&self) -> ConnectionStatus {
        match self {
            Runtime::Direct(client) => client.status(),
            Runtime::Reader(reader) => reader.status(),
        }
    }
}
