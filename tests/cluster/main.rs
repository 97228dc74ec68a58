//! Tests on a real Kubernetes node: API server, RBAC, admission, kubelet, probes, restarts. `cargo xtask cluster test` starts
//! the node and runs them one at a time; docs/cluster.md describes it.

mod agent;
mod ephemeral;
mod fleet;
mod kills;
mod kinds;
mod overlays;
mod support;
mod upkeep;
mod walkthrough;
