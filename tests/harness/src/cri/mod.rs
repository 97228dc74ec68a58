//! The writing half of CRI v1: what a kubelet says to containerd. The reading half is the agent's.

pub mod client;
pub mod messages;
