//! The CRI v1 calls that a kubelet makes to start and stop pods. The calls that only read are in podopsy-pods.

pub mod client;
pub mod messages;
