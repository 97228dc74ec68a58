//! What every probe needs: attach to a raw tracepoint, take a map, find the cgroup v2 root.

use std::path::PathBuf;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::Map;
use aya::programs::RawTracePoint;

/// Loads `program` and attaches it to a raw tracepoint; needs no tracefs.
pub(crate) fn raw_tracepoint(ebpf: &mut Ebpf, program: &str, tracepoint: &str) -> anyhow::Result<()> {
    let found: &mut RawTracePoint =
        ebpf.program_mut(program).with_context(|| format!("no program {program}"))?.try_into()?;
    found.load().with_context(|| format!("load {program}"))?;
    found.attach(tracepoint).with_context(|| format!("attach {program} to {tracepoint}"))?;
    Ok(())
}

/// Takes a map out of the object; each can be taken once.
pub(crate) fn take_map(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Map> {
    ebpf.take_map(name).with_context(|| format!("the probes have no map {name}"))
}

/// The root of the v2 hierarchy, where programs see every process: its own mount on hybrid hosts.
pub(crate) fn cgroup2_root() -> anyhow::Result<PathBuf> {
    let mounts = procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .context("read /proc/self/mountinfo")?;
    mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .context("no cgroup2 file system is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`, or mount the host's /sys/fs/cgroup into the container")
}
