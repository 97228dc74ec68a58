//! All agents of a cluster: finds them, asks all of them at once, and merges what they answer.
//!
//! | module | does |
//! |---|---|
//! | [`kubectl`] | calls kubectl, which knows the cluster and the user's credentials |
//! | [`agents`] | the agents' pods, by label |
//! | [`transport`] | a stream to one agent's socket |
//! | [`ask`] | one question to all agents: some at a time, each with a deadline |
//! | [`newest`] | the newest events of all agents, in bounded memory |
//! | [`owners`] | `deploy/NAME` and the like: the pods of an owner |
//! | [`untrusted`] | answers as model types, with safe text |
//!
//! An agent may be compromised, or of another version: its answers are bounded and escaped here. This crate must not
//! depend on how anything is rendered, nor on what records.
#![forbid(unsafe_code)]

pub mod agents;
pub mod ask;
pub mod kubectl;
pub mod newest;
pub mod owners;
pub mod transport;
pub mod untrusted;

pub use agents::{Agent, NodeFailure};
pub use ask::{Answers, Fleet, Limits};
pub use kubectl::{Kubectl, KubectlError};
pub use newest::{EventQuery, FleetEvents};
pub use owners::PodFilter;
pub use transport::Transport;
