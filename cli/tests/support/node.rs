//! An agent in this process, and the options that lead podopsy to it.

use std::process::Command;

use tokio::runtime::Runtime;

use crate::agent::TestAgent;

pub struct Node {
    pub agent: TestAgent,
    pub folder: tempfile::TempDir,
    _runtime: Runtime,
}

impl Node {
    pub fn start() -> Node {
        let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let agent = TestAgent::start(&runtime, folder.path(), "agent");
        Node { agent, folder, _runtime: runtime }
    }

    pub fn podopsy(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podopsy"));
        command.args(arguments).env("PODOPSY_SOCKET", &self.agent.socket);
        command.env("PODOPSY_STATE_DIR", self.folder.path().join("none"));
        command.env("PODOPSY_CRI_SOCKET", "/nonexistent").env_remove("NODE_NAME");
        command
    }
}
