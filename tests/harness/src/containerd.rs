//! A private containerd: its root, state, socket, CNI and runc directories are below the node's directory.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::PATIENCE;
use crate::cri::client::Cri;
use crate::network::Network;

/// The image of every sandbox; imported before the first pod.
pub const PAUSE_IMAGE: &str = "registry.podopsy.test/pause:1";

/// Where distributions put the CNI plugins.
const CNI: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Checks that the required programs are installed, before anything is made. Returns the CNI plugins' folder; an error
/// names the command that installs what is missing.
pub fn check() -> anyhow::Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("real pods need root: run this as root, e.g. with sudo -E");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "ip"] {
        if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
            bail!(
                "{program} is not on PATH: apt-get install containerd runc containernetworking-plugins iproute2"
            );
        }
    }
    CNI.iter()
        .map(PathBuf::from)
        .find(|folder| ["bridge", "host-local", "loopback"].iter().all(|name| folder.join(name).is_file()))
        .with_context(|| format!("no CNI plugins in {CNI:?}: apt-get install containernetworking-plugins"))
}

/// A containerd that answers CRI.
#[derive(Debug)]
pub struct Containerd {
    pub child: Child,
    pub socket: PathBuf,
    log: PathBuf,
    snapshotter: &'static str,
}

impl Containerd {
    /// Writes the configuration and starts containerd in the node's network; it is not ready yet.
    pub fn start(directory: &Path, network: &Network, cni: &Path) -> anyhow::Result<Self> {
        // An overlay cannot lie on an overlay, which is what / is inside a container.
        let on_overlay = statfs(directory)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC;
        let snapshotter = if on_overlay { "native" } else { "overlayfs" };
        let socket = directory.join("containerd.sock");
        let configuration = configuration(directory, &socket, cni, snapshotter);
        let file = directory.join("config.toml");
        std::fs::write(&file, configuration).with_context(|| format!("write {}", file.display()))?;
        let log = directory.join("containerd.log");
        let output = File::create(&log).with_context(|| format!("write {}", log.display()))?;
        let child = network
            .command("containerd")
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C at a terminal signals the whole group, and the teardown needs containerd for a little longer.
            .process_group(0)
            .spawn()
            .context("start containerd: apt-get install containerd")?;
        Ok(Self { child, socket, log, snapshotter })
    }

    /// Waits until the runtime and its network are ready.
    pub fn wait(&mut self, cri: &Cri) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let error = match self.socket.exists().then(|| cri.check_ready()) {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => format!("{error:#}"),
                None => "no socket yet".to_owned(),
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("containerd ended ({status}); the end of its log:\n{}", self.log_tail());
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "containerd is not ready after {PATIENCE:?}: {error}; the end of its log:\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Imports an OCI archive into the namespace that CRI reads.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "k8s.io", "images", "import", "--snapshotter", self.snapshotter])
            .arg(archive)
            .output()
            .context("run ctr: apt-get install containerd")?;
        if !output.status.success() {
            bail!(
                "ctr images import {}: {}",
                archive.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// The last lines of its log: the reason, when a pod does not start.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn configuration(directory: &Path, socket: &Path, cni: &Path, snapshotter: &str) -> String {
    let directory = directory.display();
    let (socket, cni) = (socket.display(), cni.display());
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# A process without CAP_SYS_RESOURCE may not lower oom_score_adj, and no sandbox would start.
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{directory}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{directory}/runc"
SystemdCgroup = false
"#
    )
}
