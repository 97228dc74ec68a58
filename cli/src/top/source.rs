//! The rows of a node or of a cluster, now or in the past, and the pages of one container.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use podopsy_client::AgentClient;
use podopsy_top::{RowKey, Snapshot};
use tokio::time::sleep;

use super::live::LiveSource;
use super::pages::{self, FlameFeed};
use super::past::PastSource;
use super::remote::RemoteSource;
use crate::args::TopArgs;
use crate::context::Context;
use crate::exit::Refusal;
use crate::fleet::ClusterAgents;
use crate::selection::Selection;
use crate::{history, privilege};

/// How long the first reading of CPU time takes.
const FIRST: Duration = Duration::from_secs(1);

/// Where the rows come from.
pub enum Source {
    Node(Box<NodeSource>),
    Fleet(Arc<ClusterAgents>, Box<RemoteSource>),
}

/// This node, now or at a time of its agent's history.
pub struct NodeSource {
    context: Context,
    selection: Selection,
    agent: Option<AgentClient>,
    /// Started when it is first shown.
    live: Option<LiveSource>,
    past: Option<PastSource>,
    /// None: now.
    at: Option<Timestamp>,
}

impl Source {
    pub async fn start(context: &Context, args: &TopArgs) -> anyhow::Result<Source> {
        if let Some(fleet) = &context.fleet {
            if args.at.is_some() {
                let reason = "top: --at shows the history of one node: run podopsy top --at there";
                return Err(Refusal(reason.to_owned()).into());
            }
            return Ok(Source::Fleet(fleet.clone(), Box::new(RemoteSource::start(fleet, args)?)));
        }
        let selection = Selection::new(&args.selection.targets, &args.selection.pods)?;
        let agent = match args.at {
            Some(_) => Some(history::require_agent(&args.history).await?),
            None => history::agent(&args.history).await?,
        };
        let past = agent.clone().map(|agent| PastSource::new(agent, selection.clone()));
        let context = context.clone();
        let mut node = NodeSource { context, selection, agent, live: None, past, at: args.at };
        if args.at.is_none() {
            node.start_live().await?;
        }
        Ok(Source::Node(Box::new(node)))
    }

    pub async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        match self {
            Source::Node(node) => node.snapshot().await,
            Source::Fleet(_, remote) => Ok(remote.snapshot().await),
        }
    }

    pub fn is_live(&self) -> bool {
        match self {
            Source::Node(node) => node.at.is_none(),
            Source::Fleet(..) => true,
        }
    }

    /// Whether there can be no more rows, as far as it is known.
    pub fn is_over(&self) -> bool {
        matches!(self, Source::Fleet(_, remote) if remote.is_over())
    }

    pub fn move_by(&mut self, step: SignedDuration) -> anyhow::Result<()> {
        match self {
            Source::Node(node) => node.move_by(step),
            Source::Fleet(..) => anyhow::bail!("the history is shown on a node: podopsy top --at there"),
        }
    }

    pub fn go_live(&mut self) {
        if let Source::Node(node) = self {
            node.at = None;
        }
    }

    pub async fn timeline(&self, key: &RowKey) -> anyhow::Result<Vec<String>> {
        match self {
            Source::Node(node) => {
                let until = node.at.unwrap_or_else(Timestamp::now);
                pages::timeline(&node.context, node.agent()?, key, until).await
            }
            Source::Fleet(fleet, _) => {
                pages::of_node(fleet, key, &["timeline", &key.target(), "--since=24h"]).await
            }
        }
    }

    pub async fn autopsy(&self, key: &RowKey) -> anyhow::Result<Vec<String>> {
        match self {
            Source::Node(node) => {
                let until = node.at.unwrap_or_else(Timestamp::now);
                pages::autopsy(&node.context, node.agent()?, key, until).await
            }
            Source::Fleet(fleet, _) => pages::autopsy_of_node(fleet, key).await,
        }
    }

    pub fn flame(&self, key: RowKey) -> anyhow::Result<FlameFeed> {
        match self {
            Source::Node(node) => {
                let live = node.live.as_ref().filter(|_| node.at.is_none());
                let live = live.context("a flame graph is of now: n goes back to it")?;
                FlameFeed::of_pods(&node.context, live.pods(), key)
            }
            Source::Fleet(fleet, _) => Ok(FlameFeed::of_fleet(fleet, key)),
        }
    }
}

impl NodeSource {
    async fn start_live(&mut self) -> anyhow::Result<()> {
        privilege::require_runtime("top", self.context.global.cri_socket.as_deref())?;
        let live = LiveSource::start(&self.context, self.selection.clone(), self.agent.clone()).await?;
        self.live = Some(live);
        sleep(FIRST).await;
        Ok(())
    }

    async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        if let (Some(at), Some(past)) = (self.at, &mut self.past) {
            return past.snapshot(&self.context, at).await;
        }
        if self.live.is_none() {
            self.start_live().await?;
        }
        let live = self.live.as_mut().context("the node cannot be read")?;
        Ok(live.snapshot().await)
    }

    fn move_by(&mut self, step: SignedDuration) -> anyhow::Result<()> {
        self.agent()?;
        let now = Timestamp::now();
        let to = self.at.unwrap_or(now).checked_add(step)?;
        self.at = (to < now).then_some(to);
        Ok(())
    }

    fn agent(&self) -> anyhow::Result<&AgentClient> {
        self.agent.as_ref().context("no agent answers: start podopsy-agent with --state-dir")
    }
}
