//! The cluster's mount and network namespaces, held by one process.
//!
//! In the network namespace are the bridge, the pods' interfaces, kube-proxy's iptables rules and every port: nothing
//! collides with the host or with the kernel tests. In the mount namespace, folders of the cluster cover the host's that
//! Kubernetes and containerd use whatever their configuration. Both vanish with their last process.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::layout::{BRIDGE, GATEWAY, HOST_FOLDERS, Layout, NODE};
use super::process::{self, Process};

/// Kernel settings that the kubelet writes. They are not part of any namespace, so files of the cluster cover them:
/// `kernel.panic_on_oops` for one must stay the host's.
const SYSCTLS: [&str; 6] = [
    "/proc/sys/kernel/keys/root_maxbytes",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
];

/// Makes them, and returns the process that holds them.
pub fn create(layout: &Layout) -> Result<Process> {
    let (script, ready) = (layout.node.join("namespaces.sh"), layout.node.join("namespaces.ready"));
    fs::write(&script, script_text(layout, &ready)?)
        .with_context(|| format!("write {}", script.display()))?;
    let unshare = ["unshare", "--mount", "--net", "--propagation=private", "/bin/sh"].map(str::to_owned);
    let log = layout.logs().join("namespaces.log");
    let arguments: Vec<String> = unshare.into_iter().chain([script.display().to_string()]).collect();
    let holder = process::start(&arguments, &log)?;
    let start = Instant::now();
    while !ready.exists() {
        let log = fs::read_to_string(&log).unwrap_or_default();
        ensure!(holder.is_alive(), "cannot make the cluster's namespaces: {log}");
        ensure!(start.elapsed() < Duration::from_secs(30), "the cluster's namespaces take too long: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(holder)
}

fn script_text(layout: &Layout, ready: &Path) -> Result<String> {
    let node = layout.node.display();
    // Shared, because pods with `mountPropagation: HostToContainer` need it; with no mount of the host's namespace.
    let mut script = String::from("set -eu\nmount --make-rshared /\n");
    for folder in HOST_FOLDERS {
        let own = layout.host_folder(folder);
        fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        script += &format!("mount --bind '{}' '{folder}'\n", own.display());
    }
    let mut hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    // `kubectl logs` and `exec`: the API server looks the node up by its name.
    hosts += &format!("\n{GATEWAY} {NODE}\n");
    fs::write(layout.node.join("hosts"), hosts).context("write the cluster's hosts")?;
    script += &format!("mount --bind '{node}/hosts' /etc/hosts\n");
    for path in SYSCTLS.iter().filter(|path| Path::new(path).exists()) {
        let own = layout.node.join("sysctl").join(path.replace('/', "-"));
        let value = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        fs::write(&own, value).with_context(|| format!("write {}", own.display()))?;
        script += &format!("mount --bind '{}' '{path}'\n", own.display());
    }
    script += &format!(
        "ip link set lo up\nip link add {BRIDGE} type bridge\nip address add {GATEWAY}/24 dev {BRIDGE}\n\
         ip link set {BRIDGE} up\n: >'{}'\nexec sleep infinity\n",
        ready.display()
    );
    Ok(script)
}
