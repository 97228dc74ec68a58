//! The names, folders and addresses of the cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::setup;

/// The cgroup that holds every process of the cluster, and the kubelet's `cgroupRoot`. With the default root, a kubelet
/// would remove the pods of the kernel tests' harness: it ends every pod below `/kubepods` that it does not know.
pub const CGROUP: &str = "podopsy-cluster";
/// The node's name.
pub const NODE: &str = "node1";
/// The bridge's address: the pods' gateway and resolver, and the node's address.
pub const GATEWAY: &str = "10.77.0.1";
pub const POD_RANGE: &str = "10.77.0.0/24";
pub const SERVICE_RANGE: &str = "10.97.0.0/24";
/// The first address of [`SERVICE_RANGE`], which Kubernetes gives to its API.
pub const API_SERVICE: &str = "10.97.0.1";
pub const BRIDGE: &str = "k8sbr0";
pub const ETCD: &str = "http://127.0.0.1:23790";

/// The host's folders that programs use whatever their configuration. In the cluster's mount namespace, others are
/// mounted over them.
pub const HOST_FOLDERS: [&str; 6] = [
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/lib/podopsy",
    "/var/log/containers",
    "/var/log/pods",
];

/// The folders of the cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Kubernetes, kubectl and etcd: what is built or downloaded once.
    pub cache: PathBuf,
    /// The files of the cluster that runs, or of the last one.
    pub node: PathBuf,
    /// Sockets, scripts and the state file. Short paths, because a socket's has at most 107 bytes; and a fixed folder,
    /// because a machine has one cluster at a time, also when several clones start it.
    pub run: PathBuf,
}

impl Layout {
    pub fn new() -> Result<Layout> {
        let cache = setup::cache_dir()?.join("cluster");
        Ok(Layout { node: cache.join("node"), cache, run: PathBuf::from("/run/podopsy-cluster") })
    }

    /// Makes the folders of a cluster that is to be started.
    pub fn create(&self) -> Result<()> {
        for folder in [
            self.node.clone(),
            self.run.join("bin"),
            self.run.join("cri"),
            self.run.join("home"),
            self.logs(),
        ] {
            create(&folder)?;
        }
        for name in ["pki", "cni", "containerd", "static-pods", "sysctl", "host"] {
            create(&self.node.join(name))?;
        }
        // The keys of the cluster are in it.
        for folder in [&self.node, &self.run] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                .with_context(|| format!("restrict {}", folder.display()))?;
        }
        Ok(())
    }

    pub fn logs(&self) -> PathBuf {
        self.cache.join("logs")
    }

    /// containerd's, in a folder of its own, which the agent's pod mounts.
    pub fn socket(&self) -> PathBuf {
        self.run.join("cri/containerd.sock")
    }

    /// A program of Kubernetes.
    pub fn program(&self, name: &str) -> PathBuf {
        self.cache.join(super::build::folder_name()).join(name)
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        match user {
            "admin" => self.run.join("admin.kubeconfig"),
            _ => self.node.join(format!("{user}.kubeconfig")),
        }
    }

    /// The script that calls the newer kubectl in the cluster's network.
    pub fn kubectl(&self) -> PathBuf {
        self.run.join("bin/kubectl")
    }

    /// The script that calls the cluster's own kubectl.
    pub fn kubectl_old(&self) -> PathBuf {
        self.run.join("bin/kubectl-1.20")
    }

    pub fn pki(&self, name: &str) -> PathBuf {
        self.node.join("pki").join(name)
    }

    /// The folder that is mounted over one of [`HOST_FOLDERS`].
    pub fn host_folder(&self, path: &str) -> PathBuf {
        self.node.join("host").join(path.trim_start_matches('/').replace('/', "-"))
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}
