//! One question to all agents: some at a time, each with a deadline. What does not answer is named, and the rest counts.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use podopsy_client::{AgentClient, ClientError};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::agents::{self, Agent, NodeFailure};
use crate::kubectl::{Kubectl, KubectlError};
use crate::transport::Transport;

/// The longest version that is shown.
const VERSION_CHARS_MAX: usize = 40;

/// How many agents are asked at a time, and how long each may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub concurrent: usize,
    pub deadline: Duration,
}

impl Default for Limits {
    /// Each call of kubectl is a process of some 40 MiB.
    fn default() -> Limits {
        Limits { concurrent: 32, deadline: Duration::from_secs(30) }
    }
}

/// The agents of a cluster.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub transport: Transport,
    pub agents: Vec<Agent>,
    /// Nodes whose agents cannot be asked.
    pub missing: Vec<NodeFailure>,
    pub limits: Limits,
    /// How many agents have answered, or failed to, for a display of the progress.
    pub asked: Arc<AtomicUsize>,
}

/// What the agents answered.
#[derive(Debug)]
pub struct Answers<T> {
    /// In the order of the nodes' names.
    pub answers: Vec<Answer<T>>,
    pub failures: Vec<NodeFailure>,
}

#[derive(Debug)]
pub struct Answer<T> {
    pub agent: Agent,
    /// The agent's version, as it says.
    pub version: String,
    pub value: T,
}

impl Fleet {
    /// Finds the agents in a namespace by their label.
    pub async fn find(kubectl: Kubectl, namespace: &str, limits: Limits) -> Result<Fleet, KubectlError> {
        let (agents, missing) = agents::list(&kubectl, namespace).await?;
        Ok(Fleet::new(Transport::Kubectl(kubectl), agents, missing, limits))
    }

    /// The agents whose sockets are in a folder.
    pub fn of_sockets(folder: &Path, limits: Limits) -> std::io::Result<Fleet> {
        let mut agents = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name();
            if let Some(node) = name.to_str().and_then(|name| name.strip_suffix(".sock")) {
                agents.push(Agent { node: node.to_owned(), host: node.to_owned(), ..Agent::default() });
            }
        }
        agents.sort();
        Ok(Fleet::new(Transport::Sockets(folder.to_owned()), agents, Vec::new(), limits))
    }

    fn new(transport: Transport, agents: Vec<Agent>, missing: Vec<NodeFailure>, limits: Limits) -> Fleet {
        Fleet { transport, agents, missing, limits, asked: Arc::default() }
    }

    /// Keeps the agents of these nodes. A node without an agent is missing.
    pub fn keep_nodes(&mut self, nodes: &[String]) {
        let is_kept = |node: &str| nodes.iter().any(|kept| kept == node);
        self.agents.retain(|agent| is_kept(&agent.node));
        self.missing.retain(|failure| is_kept(&failure.node));
        for node in nodes {
            let is_known = self.agents.iter().any(|agent| agent.node == *node)
                || self.missing.iter().any(|failure| failure.node == *node);
            if !is_known {
                self.missing.push(NodeFailure::new(node, "it has no agent"));
            }
        }
    }

    /// The agent on the node that the API server names so.
    pub fn agent_on(&self, host: &str) -> Option<&Agent> {
        self.agents
            .iter()
            .find(|agent| agent.node == host)
            .or_else(|| self.agents.iter().find(|agent| agent.host == host))
    }

    /// Asks every agent for its version and then the question.
    pub async fn ask<T, F>(
        &self,
        question: impl Fn(Agent, AgentClient) -> F + Clone + Send + Sync + 'static,
    ) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ClientError>> + Send + 'static,
    {
        let transport = self.transport.clone();
        self.each(move |agent| ask_one(transport.clone(), agent, question.clone())).await
    }

    /// Does the same for every agent, at most `limits.concurrent` at a time. `missing` is among the failures.
    pub async fn each<T, F>(&self, work: impl Fn(Agent) -> F) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<(String, T), NodeFailure>> + Send + 'static,
    {
        let slots = Arc::new(Semaphore::new(self.limits.concurrent));
        let mut tasks = JoinSet::new();
        for agent in &self.agents {
            let (slots, asked, deadline) = (slots.clone(), self.asked.clone(), self.limits.deadline);
            let (agent, work) = (agent.clone(), work(agent.clone()));
            tasks.spawn(async move {
                let _slot = slots.acquire_owned().await;
                let result = tokio::time::timeout(deadline, work).await;
                asked.fetch_add(1, Relaxed);
                let late = || NodeFailure::new(&agent.node, format!("no answer within {deadline:?}"));
                let (version, value) = result.unwrap_or_else(|_| Err(late()))?;
                Ok(Answer { agent, version, value })
            });
        }
        let mut all = Answers { answers: Vec::new(), failures: self.missing.clone() };
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(Ok(answer)) => all.answers.push(answer),
                Ok(Err(failure)) => all.failures.push(failure),
                Err(error) => all.failures.push(NodeFailure::new("(unknown)", error.to_string())),
            }
        }
        all.answers.sort_by(|a, b| a.agent.cmp(&b.agent));
        all.failures.sort();
        all
    }
}

async fn ask_one<T, F>(
    transport: Transport,
    agent: Agent,
    question: impl Fn(Agent, AgentClient) -> F,
) -> Result<(String, T), NodeFailure>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let connection = transport.connect(&agent).await?;
    let client = connection.client.clone();
    let result = async { Ok((version(&client).await?, question(agent.clone(), client).await?)) }.await;
    match result {
        Ok(answer) => Ok(answer),
        Err(error) => Err(connection.failure(&agent, &error).await),
    }
}

/// The agent's version. Text that is none is cut.
async fn version(client: &AgentClient) -> Result<String, ClientError> {
    #[derive(Deserialize)]
    struct Status {
        version: String,
    }
    let status: Status = client.json("/api/v1/status", &Vec::new()).await?;
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || ".-+".contains(*c);
    Ok(status.version.chars().filter(is_plain).take(VERSION_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(nodes: usize) -> Fleet {
        let agent = |n| Agent { node: format!("n{n:03}"), host: format!("h{n:03}"), ..Agent::default() };
        let limits = Limits { concurrent: 4, deadline: Duration::from_millis(200) };
        Fleet::new(
            Transport::Sockets("/nonexistent".into()),
            (0..nodes).map(agent).collect(),
            Vec::new(),
            limits,
        )
    }

    #[tokio::test]
    async fn some_are_asked_at_a_time_and_what_is_late_is_named() {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let fleet = fleet(20);
        let answers = fleet
            .each(|agent| {
                let (running, most) = (running.clone(), most.clone());
                async move {
                    most.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
                    let is_stuck = agent.node == "n007";
                    tokio::time::sleep(Duration::from_millis(if is_stuck { 5000 } else { 5 })).await;
                    running.fetch_sub(1, Relaxed);
                    Ok(("1".to_owned(), agent.node.len()))
                }
            })
            .await;
        assert_eq!((answers.answers.len(), most.load(Relaxed)), (19, 4));
        assert_eq!(answers.failures, [NodeFailure::new("n007", "no answer within 200ms")]);
        assert!(answers.answers.is_sorted_by_key(|answer| answer.agent.node.clone()));
        assert_eq!(fleet.asked.load(Relaxed), 20);
    }

    #[tokio::test]
    async fn an_agent_that_cannot_be_reached_is_named() {
        let answers = fleet(1).ask(|_, _| async { Ok(()) }).await;
        assert!(answers.failures[0].reason.contains("No such file"), "{:?}", answers.failures);
    }

    #[test]
    fn a_node_without_an_agent_is_missing() {
        let mut fleet = fleet(3);
        assert_eq!(fleet.agent_on("h002").map(|agent| &*agent.node), Some("n002"));
        fleet.keep_nodes(&["n001".into(), "x".into()]);
        assert_eq!(fleet.agents.len(), 1);
        assert_eq!(fleet.missing, [NodeFailure::new("x", "it has no agent")]);
    }
}
