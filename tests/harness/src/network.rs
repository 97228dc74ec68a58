//! A network namespace for the node, with the bridge, the pods' veths and their addresses. It has no way out: the
//! machine's own network never sees them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

/// The bridge's address in the node: the pods' gateway, and the address that [`crate::Resolver`]s listen on.
pub const GATEWAY: &str = "10.88.0.1";
const BRIDGE: &str = "podopsy0";

/// The namespace. It exists until its last process has ended and this descriptor is closed.
#[derive(Debug)]
pub struct Network {
    namespace: File,
}

impl Network {
    /// A new namespace with `lo` and the bridge up.
    pub fn up() -> anyhow::Result<Self> {
        // In a thread of its own: unshare changes the calling thread's namespace.
        let namespace = std::thread::spawn(|| -> anyhow::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace: needs CAP_SYS_ADMIN")?;
            File::open("/proc/thread-self/ns/net").context("open the new network namespace")
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that makes the network namespace panicked"))??;
        let network = Self { namespace };
        network.ip(&["link", "set", "lo", "up"])?;
        network.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        network.ip(&["link", "set", BRIDGE, "up"])?;
        network.add_address(GATEWAY)?;
        Ok(network)
    }

    /// Adds an address to the bridge, such as a second resolver's. Pods never get 10.88.0.2 to 10.88.0.15.
    pub fn add_address(&self, address: &str) -> anyhow::Result<()> {
        self.ip(&["address", "add", &format!("{address}/24"), "dev", BRIDGE])
    }

    /// A command that runs in the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let descriptor = self.namespace.as_raw_fd();
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe; the descriptor is
        // closed on exec but still open here, since `self` outlives the spawn in every caller.
        unsafe {
            command.pre_exec(move || {
                let namespace = std::os::fd::BorrowedFd::borrow_raw(descriptor);
                setns(namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            })
        };
        command
    }

    fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output =
            self.command("ip").args(arguments).output().context("run ip: apt-get install iproute2")?;
        if !output.status.success() {
            bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// Writes the CNI configuration: a bridge plugin on our bridge, addresses kept under `directory`.
///
/// The network's name is unique to the node: libcni caches results under it in `/var/lib/cni`.
pub fn write_cni(directory: &Path, name: &str) -> anyhow::Result<()> {
    let configuration = json!({
        "cniVersion": "0.4.0",
        "name": name,
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            // The namespace has no way out: nothing is masqueraded, and iptables is not needed.
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("cni-data"),
                "ranges": [[{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.16", "gateway": GATEWAY }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    let folder = directory.join("cni");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let file = folder.join("10-podopsy.conflist");
    std::fs::write(&file, configuration.to_string()).with_context(|| format!("write {}", file.display()))
}
