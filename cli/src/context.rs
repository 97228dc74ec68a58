//! What every command is given: the global options, and the terminals.

use std::sync::Arc;

use anyhow::Context as _;
use podopsy_pods::{self as pods, Pods};

use crate::args::Global;
use crate::terminal::Terminal;

#[derive(Clone, Debug)]
pub struct Context {
    pub global: Global,
    pub stdout: Terminal,
    pub stderr: Terminal,
}

impl Context {
    pub fn new(global: Global) -> Self {
        Context { global, stdout: Terminal::stdout(), stderr: Terminal::stderr() }
    }

    /// The node's name, safe to print: as given, else the host's.
    pub fn node(&self) -> String {
        podopsy_system::node::name(self.global.node.as_deref())
    }

    /// Opens the room that names pods. A runtime that is absent or broken is no error there.
    pub async fn pods(&self) -> anyhow::Result<Arc<Pods>> {
        let defaults = pods::PodsOptions::default();
        let options = pods::PodsOptions {
            cri_socket: self.global.cri_socket.clone(),
            cri_timeout: self.global.cri_timeout,
            ..defaults
        };
        Pods::start(options).await.context("cannot look for pods")
    }
}
