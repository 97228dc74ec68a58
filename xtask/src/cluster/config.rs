//! The configuration files of containerd, its network plugin, and the kubelet.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde_json::{Value, json};

use super::images::PAUSE;
use super::layout::{BRIDGE, CGROUP, GATEWAY, Layout, POD_RANGE};

pub fn containerd_file(layout: &Layout) -> PathBuf {
    layout.node.join("containerd/config.toml")
}

pub fn kubelet_file(layout: &Layout) -> PathBuf {
    // JSON is YAML.
    layout.node.join("kubelet.yaml")
}

/// Writes all of them.
pub fn write(layout: &Layout) -> Result<()> {
    let snapshotter = snapshotter(&layout.node)?;
    write_file(&containerd_file(layout), &containerd(layout, snapshotter))?;
    write_file(&layout.node.join("cni/10-podopsy.conflist"), &network(layout).to_string())?;
    write_file(&kubelet_file(layout), &kubelet(layout).to_string())?;
    // For pods with `dnsPolicy: Default`.
    write_file(&layout.node.join("resolv.conf"), &format!("nameserver {GATEWAY}\n"))
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// An overlay cannot lie on an overlay, which is what / is inside a container.
pub fn snapshotter(folder: &Path) -> Result<&'static str> {
    let kind = statfs(folder).with_context(|| folder.display().to_string())?.filesystem_type();
    Ok(if kind == OVERLAYFS_SUPER_MAGIC { "native" } else { "overlayfs" })
}

fn containerd(layout: &Layout, snapshotter: &str) -> String {
    let (node, socket) = (layout.node.display(), layout.socket());
    let (run, socket) = (layout.run.display(), socket.display());
    format!(
        r#"version = 2
root = "{node}/containerd/root"
state = "{run}/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{node}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# A process without CAP_SYS_RESOURCE may not lower oom_score_adj, and no sandbox would start.
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{node}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{run}/runc"
SystemdCgroup = false
"#
    )
}

fn network(layout: &Layout) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "podopsy-cluster",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            // The namespace has no way out: nothing is masqueraded.
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": layout.node.join("cni-data"),
                "subnet": POD_RANGE,
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

fn kubelet(layout: &Layout) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": layout.pki("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": layout.pki("kubelet-server.crt"),
        "tlsPrivateKeyFile": layout.pki("kubelet-server.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{CGROUP}"),
        "clusterDNS": [GATEWAY],
        "clusterDomain": "cluster.local",
        "resolvConf": layout.node.join("resolv.conf"),
        "staticPodPath": layout.node.join("static-pods"),
        "fileCheckFrequency": "2s",
        "featureGates": { "EphemeralContainers": true },
        "failSwapOn": false,
        // Lowering it takes CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        // Images are imported and not pulled: one that was removed would be missing.
        "imageGCHighThresholdPercent": 100,
        // The machine's other work must not evict pods.
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "makeIPTablesUtilChains": false,
        "volumePluginDir": layout.node.join("volume-plugins"),
    })
}
