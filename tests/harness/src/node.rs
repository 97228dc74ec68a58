//! A Kubernetes node without Kubernetes: containerd, a network, images and pods. Dropping it removes everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use podopsy_image::Image;

use crate::PATIENCE;
use crate::binaries::{self, VICTIMS};
use crate::cgroup;
use crate::containerd::{self, Containerd, PAUSE_IMAGE};
use crate::cri::client::Cri;
use crate::handle::{Keeper, PodHandle};
use crate::network::{self, GATEWAY, Network};
use crate::pod::PodSpec;
use crate::process::Process;
use crate::resolver::Resolver;
use crate::state::{NodeLock, NodeState, SharedState};
use crate::teardown::{self, PREFIX};

/// Receives each line of progress.
type ReportProgress = Box<dyn Fn(&str) + Send + Sync>;

/// The image of a pod's sandbox. `victims` is the folder of the victims' programs.
pub fn pause_image(name: &str, victims: &Path) -> Image {
    Image::new(name).binary(victims.join("pause")).entrypoint(["/bin/pause"])
}

/// An image with all victims in `/bin`.
pub fn victims_image(name: &str, victims: &Path) -> Image {
    VICTIMS.iter().fold(Image::new(name), |image, victim| image.binary(victims.join(victim)))
}

/// An image with podopsy's static programs, at the same paths as in manifests/Dockerfile.
pub fn podopsy_image(name: &str, [cli, agent]: [PathBuf; 2]) -> Image {
    let image = Image::new(name).binary_at("podopsy", cli).binary_at("podopsy-agent", agent);
    image.entrypoint(["/podopsy-agent"])
}

/// A running node. A machine has one at a time: a second one waits for the first to end.
pub struct Node {
    directory: PathBuf,
    containerd: Containerd,
    cri: Arc<Cri>,
    network: Network,
    victims: PathBuf,
    shared: Arc<SharedState>,
    progress: ReportProgress,
    // The last field, so that it is released after the others are dropped.
    _lock: NodeLock,
}

impl Node {
    /// Brings a node up and writes progress to standard error.
    pub fn up() -> anyhow::Result<Self> {
        Self::up_with(|line| eprintln!("node: {line}"))
    }

    /// Brings a node up: removes what a killed run left, builds the victims, starts containerd.
    ///
    /// Its directory is below `TMPDIR` (or /tmp). On an overlay, containerd must copy files, which is slow.
    pub fn up_with(progress: impl Fn(&str) + Send + Sync + 'static) -> anyhow::Result<Self> {
        let progress: ReportProgress = Box::new(progress);
        let cni = containerd::check()?;
        let victims = binaries::victims(&progress)?;
        let lock = NodeLock::take(&progress)?;
        teardown::sweep_locked(&progress);

        let directory =
            tempfile::Builder::new().prefix(PREFIX).tempdir().context("make the node's directory")?.keep();
        let shared = Arc::new(SharedState::new(NodeState {
            directory: directory.clone(),
            kept: cgroup::existing_parents(),
            ..NodeState::default()
        }));
        shared.get().save()?;
        teardown::guard(&shared);
        // From here on, an early return must tear down what was made.
        let started = Self::start(&directory, &cni, &shared, &progress);
        let (containerd, cri, network) = match started {
            Ok(parts) => parts,
            Err(error) => {
                let problems = teardown::tear_down(&shared.get());
                teardown::unguard();
                problems.iter().for_each(|problem| progress(&format!("left behind: {problem}")));
                return Err(error);
            }
        };
        let node = Self {
            directory,
            containerd,
            cri: Arc::new(cri),
            network,
            victims,
            shared,
            progress,
            _lock: lock,
        };
        node.load_image(&pause_image(PAUSE_IMAGE, &node.victims))?;
        (node.progress)(&format!("up, CRI at {}", node.cri_socket().display()));
        Ok(node)
    }

    fn start(
        directory: &Path,
        cni: &Path,
        shared: &SharedState,
        progress: &ReportProgress,
    ) -> anyhow::Result<(Containerd, Cri, Network)> {
        let network = Network::up()?;
        let id = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        network::write_cni(directory, &id)?;
        progress("starting containerd");
        let mut containerd = Containerd::start(directory, &network, cni)?;
        let process = Process::now(containerd.child.id() as i32).context("containerd ended at once")?;
        shared.change(|state| state.processes.push(process))?;
        let cri = Cri::new(&containerd.socket)?;
        containerd.wait(&cri)?;
        Ok((containerd, cri, network))
    }

    /// The path of containerd's CRI socket.
    pub fn cri_socket(&self) -> &Path {
        &self.containerd.socket
    }

    /// The directory that holds all of the node's files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The node's `/var/log/pods`.
    pub fn pod_logs(&self) -> PathBuf {
        self.directory.join("var/log/pods")
    }

    /// The folder of the victims' binaries.
    pub fn victims(&self) -> &Path {
        &self.victims
    }

    /// The node's network namespace.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// containerd's pid; `/proc/PID/ns/net` is the node's network namespace.
    pub fn containerd_pid(&self) -> i32 {
        self.containerd.child.id() as i32
    }

    /// The DNS server in the pods' resolv.conf. No server listens there before [`Node::resolver`] is called.
    pub fn dns_address(&self) -> &'static str {
        GATEWAY
    }

    /// Starts the cluster's DNS server in a mode of the victim program `resolver`.
    pub fn resolver(&self, mode: &str) -> anyhow::Result<Resolver> {
        let resolver = Resolver::start(&self.victims.join("resolver"), &self.network, GATEWAY, mode)?;
        self.shared.change(|state| state.processes.extend(resolver.process()))?;
        Ok(resolver)
    }

    /// Starts another DNS server, at an address from 10.88.0.2 to 10.88.0.15.
    pub fn resolver_at(&self, address: &str, mode: &str) -> anyhow::Result<Resolver> {
        self.network.add_address(address)?;
        let resolver = Resolver::start(&self.victims.join("resolver"), &self.network, address, mode)?;
        self.shared.change(|state| state.processes.extend(resolver.process()))?;
        Ok(resolver)
    }

    /// Imports an image, and returns its name once CRI lists it.
    pub fn load_image(&self, image: &Image) -> anyhow::Result<String> {
        (self.progress)(&format!("loading image {}", image.name()));
        let archive = tempfile::Builder::new().suffix(".tar").tempfile_in(&self.directory)?;
        podopsy_image::write(std::slice::from_ref(image), archive.path())?;
        self.containerd.import(archive.path())?;
        // CRI handles the import's event asynchronously.
        let start = Instant::now();
        while !self.cri.has_image(image.name())? {
            if start.elapsed() > PATIENCE {
                bail!("CRI does not list {} {PATIENCE:?} after its import", image.name());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(image.name().to_owned())
    }

    /// Imports an image with all victims in `/bin`; returns its name.
    pub fn victims_image(&self, name: &str) -> anyhow::Result<String> {
        self.load_image(&victims_image(name, &self.victims))
    }

    /// Imports an image with podopsy's static binaries, which take minutes to build the first time; returns its name.
    pub fn podopsy_image(&self, name: &str) -> anyhow::Result<String> {
        self.load_image(&podopsy_image(name, binaries::podopsy(&self.progress)?))
    }

    /// Runs a pod; its containers are started when this returns.
    pub fn run_pod(&self, spec: PodSpec) -> anyhow::Result<PodHandle> {
        let uid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a pod's uid")?;
        let uid = uid.trim().to_owned();
        (self.progress)(&format!("running pod {}/{}", spec.namespace, spec.name));
        let logs = self.pod_logs().join(format!("{}_{}_{uid}", spec.namespace, spec.name));
        std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        let cgroup = spec.cgroup(&uid);
        self.shared.change(|state| state.cgroups.push(cgroup.clone()))?;
        cgroup::create(&cgroup, spec.memory_limit)?;
        let sandbox = spec.sandbox(&uid, &logs, GATEWAY);
        let sandbox_id = self.cri.run_sandbox(sandbox.clone()).with_context(|| {
            format!(
                "run the sandbox of {}/{}; containerd: {}",
                spec.namespace,
                spec.name,
                self.containerd.log_tail()
            )
        })?;
        let pod = PodHandle {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid,
            ip: self.cri.sandbox_ip(&sandbox_id)?,
            sandbox_id,
            cgroup,
            sandbox,
            logs,
            cri: self.cri.clone(),
            shared: self.shared.clone(),
            containers: Arc::new(Mutex::new(BTreeMap::new())),
            spec,
        };
        for container in pod.spec.containers.clone() {
            pod.add_container(container)?;
        }
        Ok(pod)
    }

    /// Restarts the pod's containers when they end, until the returned keeper is dropped.
    pub fn keep_running(&self, pod: &PodHandle) -> Keeper {
        Keeper::start(pod.clone())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        (self.progress)("going down");
        // By CRI first: it frees the pods' addresses and ends the shims. The teardown removes what this could not.
        for sandbox in self.cri.sandboxes().unwrap_or_default() {
            let stopped = self.cri.stop_sandbox(&sandbox);
            if let Err(error) = stopped.and_then(|()| self.cri.remove_sandbox(&sandbox)) {
                (self.progress)(&format!("sandbox {sandbox}: {error:#}"));
            }
        }
        for problem in teardown::tear_down(&self.shared.get()) {
            (self.progress)(&format!("left behind: {problem}"));
        }
        let _ = self.containerd.child.wait();
        teardown::unguard();
    }
}
