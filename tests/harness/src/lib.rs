//! Real pods for tests, the demo and the soak: a private containerd, pods as a kubelet would make them, and programs
//! that misbehave on purpose (the victims).
//!
//! ```no_run
//! use podopsy_harness::{ContainerSpec, Node, PodSpec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let node = Node::up()?;
//! let dns = node.resolver("answer")?;
//! let image = node.victims_image("registry.podopsy.test/finance/checkout-api:1.4.2")?;
//! let pod = node.run_pod(
//!     PodSpec::new("finance", "checkout-api")
//!         .label("app", "checkout-api")
//!         .container(ContainerSpec::new("app", &image).command(["leak", "--fast"]).memory_limit(32 << 20)),
//! )?;
//! let dead = pod.wait_exited("app", std::time::Duration::from_secs(20))?;
//! assert_eq!((dead.reason.as_str(), dead.exit_code), ("OOMKilled", 137));
//! pod.restart("app")?;
//! dns.set_mode("silent")?;
//! # Ok(())
//! # }
//! ```
//!
//! The API is synchronous: each call blocks its thread, and a small tokio runtime inside makes the CRI calls. So it
//! works in plain threads and within another runtime. Everything ends with [`Node`]: on drop, on panic, at SIGINT and
//! SIGTERM. After a `kill -9`, the next [`Node::up`] (or [`sweep`]) removes what is left.
//!
//! It must not touch the machine's own network, cgroups that it did not make, or processes that it did not start. Of
//! podopsy it uses only the CRI channel.

pub mod binaries;
pub mod cgroup;
pub mod containerd;
pub mod cri;
pub mod handle;
pub mod network;
pub mod node;
pub mod pod;
pub mod process;
pub mod resolver;
pub mod state;
pub mod teardown;

pub use binaries::{podopsy, victims};
pub use cri::client::{ContainerState, Status};
pub use handle::{Keeper, PodHandle};
pub use node::Node;
pub use pod::{ContainerSpec, Dns, PodSpec, Qos};
pub use podopsy_image::Image;
pub use resolver::Resolver;
pub use teardown::sweep;

/// For operations that take a second; an emulated machine beside another one needs a minute.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);
