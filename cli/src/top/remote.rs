//! What the containers of a cluster use: each agent's node is asked by a podopsy top of its own, through kubectl exec.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use podopsy_fleet::{Agent, untrusted};
use podopsy_model::text;
use podopsy_top::{ContainerRow, Snapshot};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;

use crate::args::TopArgs;
use crate::exit::Refusal;
use crate::fleet::ClusterAgents;

/// Agents that are asked at a time: each is a kubectl of some 40 MiB that runs as long as the command.
const AGENTS_MAX: usize = 64;
/// The rows of one node: 1,000 containers of 2 KiB.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// What is read of a node's reason.
const REASON_BYTES_MAX: u64 = 4 << 10;
/// A node that has sent nothing for so many intervals has no rows.
const MISSED_MAX: u32 = 4;
/// How long the first node may take.
const FIRST_WITHIN: Duration = Duration::from_secs(20);
/// How long the others may take after it, before the first table.
const OTHERS_WITHIN: Duration = Duration::from_secs(3);

/// A node's rows, or why there are none.
type NodeReading = (String, Result<Snapshot, String>);

pub struct RemoteSource {
    readings: mpsc::Receiver<NodeReading>,
    latest: BTreeMap<String, (Instant, Snapshot)>,
    failed: BTreeMap<String, String>,
    interval: Duration,
    nodes: usize,
}

impl RemoteSource {
    pub fn start(fleet: &Arc<ClusterAgents>, args: &TopArgs) -> anyhow::Result<RemoteSource> {
        let agents = &fleet.fleet.agents;
        if agents.len() > AGENTS_MAX {
            let reason =
                format!("top: {} nodes are more than {AGENTS_MAX}; name some with --node", agents.len());
            return Err(Refusal(reason).into());
        }
        let words = words(fleet, args)?;
        let (sender, readings) = mpsc::channel(AGENTS_MAX);
        for agent in agents {
            let command = fleet.kubectl()?.exec_command(agent, &words, false);
            tokio::spawn(follow(command, agent.clone(), sender.clone()));
        }
        let failed =
            fleet.fleet.missing.iter().map(|gone| (gone.node.clone(), gone.reason.clone())).collect();
        let nodes = agents.len() + fleet.fleet.missing.len();
        Ok(RemoteSource { readings, latest: BTreeMap::new(), failed, interval: args.interval, nodes })
    }

    /// The last rows of each node.
    pub async fn snapshot(&mut self) -> Snapshot {
        if self.latest.is_empty() {
            self.wait_for_first().await;
        }
        while let Ok(reading) = self.readings.try_recv() {
            self.take(reading);
        }
        let is_recent = |at: &Instant| at.elapsed() <= self.interval * MISSED_MAX;
        let mut notes = self.notes();
        let mut rows = Vec::new();
        for (node, (at, snapshot)) in &self.latest {
            if !is_recent(at) {
                notes.push(format!("{node} does not answer"));
                continue;
            }
            notes.extend(snapshot.notes.iter().map(|note| format!("{node}: {note}")));
            let of_node = |row: &ContainerRow| ContainerRow { node: Some(node.clone()), ..row.clone() };
            rows.extend(snapshot.rows.iter().map(of_node));
        }
        Snapshot { time: Timestamp::now(), is_live: true, rows, notes }
    }

    /// Waits for a node, and for a moment for the others.
    async fn wait_for_first(&mut self) {
        let mut end = tokio::time::Instant::now() + FIRST_WITHIN;
        while self.latest.len() + self.failed.len() < self.nodes {
            let Ok(Some(reading)) = tokio::time::timeout_at(end, self.readings.recv()).await else { return };
            self.take(reading);
            end = end.min(tokio::time::Instant::now() + OTHERS_WITHIN);
        }
    }

    /// Whether no node can send rows any more.
    pub fn is_over(&self) -> bool {
        self.latest.is_empty() && self.failed.len() >= self.nodes
    }

    fn take(&mut self, (node, reading): NodeReading) {
        match reading {
            Ok(snapshot) => {
                self.failed.remove(&node);
                self.latest.insert(node, (Instant::now(), snapshot));
            }
            Err(reason) => {
                self.latest.remove(&node);
                self.failed.insert(node, reason);
            }
        }
    }

    pub fn notes(&self) -> Vec<String> {
        self.failed.iter().map(|(node, reason)| format!("{node}: {reason}")).collect()
    }
}

/// The call of podopsy on each node.
fn words(fleet: &ClusterAgents, args: &TopArgs) -> anyhow::Result<Vec<OsString>> {
    let mut words: Vec<OsString> =
        ["top", "--batch", "--count=0", "--output=json"].map(OsString::from).into();
    words.push(format!("--interval={}ms", args.interval.as_millis()).into());
    for target in &args.selection.targets {
        let target = match &fleet.namespace {
            Some(namespace) => {
                target.clone().in_namespace(namespace).map_err(|error| Refusal(error.to_string()))?
            }
            None => target.clone(),
        };
        words.push(target.to_string().into());
    }
    if args.selection.targets.is_empty() {
        words.extend(fleet.namespace.iter().map(|name| format!("--namespace={name}").into()));
    }
    words.extend(fleet.selector.iter().map(|selector| format!("--selector={selector}").into()));
    Ok(words)
}

/// Sends what a node prints, until it ends or the receiver is gone.
async fn follow(mut command: tokio::process::Command, agent: Agent, sender: mpsc::Sender<NodeReading>) {
    let node = agent.node.clone();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = sender.send((node, Err(format!("cannot start kubectl: {error}")))).await;
            return;
        }
    };
    let mut lines = child.stdout.take().map(BufReader::new);
    while let Some(stream) = &mut lines {
        let mut line = Vec::new();
        let read = stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if read.is_err() || line.is_empty() {
            break;
        }
        let reading = untrusted::parse(&line).map_err(|error| format!("its answer is invalid: {error}"));
        if sender.send((node.clone(), reading)).await.is_err() {
            return;
        }
    }
    let mut reason = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(REASON_BYTES_MAX).read_to_end(&mut reason).await;
    }
    let reason = String::from_utf8_lossy(&reason);
    let reason = reason.lines().next().unwrap_or("its podopsy ended");
    let _ = sender.send((node, Err(text::visible(reason)))).await;
}
