//! What every command gets: the global options and the terminals.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use podopsy_pods::hierarchy::Hierarchy;
use podopsy_pods::{self as pods, Pods};
use podopsy_stacks::{Helpers, ParserOptions};
use tokio::sync::OnceCell;

use crate::args::GlobalArgs;
use crate::fleet::ClusterAgents;
use crate::terminal::{ColourChoice, Terminal};

#[derive(Clone, Debug)]
pub struct Context {
    pub global: GlobalArgs,
    pub stdout: Terminal,
    pub stderr: Terminal,
    /// Where this is kubectl's plugin: the agents of the cluster.
    pub fleet: Option<Arc<ClusterAgents>>,
    /// Started once: it reads all cgroups, and warns of a runtime that does not answer.
    pods: Arc<OnceCell<Arc<Pods>>>,
}

impl Context {
    pub fn new(global: GlobalArgs) -> Self {
        let (stdout, stderr) = (Terminal::stdout(), Terminal::stderr());
        Context { global, stdout, stderr, fleet: None, pods: Arc::default() }
    }

    /// For kubectl's plugin.
    pub fn of_fleet(fleet: Arc<ClusterAgents>) -> Self {
        let global = GlobalArgs {
            cri_socket: None,
            cri_timeout: Duration::ZERO,
            node: None,
            ignore_memory_limit: false,
            color: ColourChoice::Auto,
            verbose: 0,
        };
        Context { fleet: Some(fleet), ..Context::new(global) }
    }

    /// The node's name, safe to print: `--node`, or else the host's name.
    pub fn node(&self) -> String {
        podopsy_system::node::name(self.global.node.as_deref())
    }

    /// Open and parse the files of containers, in processes of their own that start with the first file.
    pub fn helpers(&self) -> Helpers {
        Helpers::on_demand(ParserOptions::command(Hierarchy::own_memory_limit()))
    }

    /// The lookup of pods, which starts with the first call. An absent or broken runtime is not an error: pods are then named by their log folders.
    pub async fn pods(&self) -> anyhow::Result<Arc<Pods>> {
        let defaults = pods::PodsOptions::default();
        let options = pods::PodsOptions {
            cri_socket: self.global.cri_socket.clone(),
            cri_timeout: self.global.cri_timeout,
            from_inside: true,
            ..defaults
        };
        let started = self.pods.get_or_try_init(|| Pods::start(options)).await;
        started.cloned().context("cannot look for pods")
    }
}
