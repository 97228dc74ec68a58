//! `podopsy core`: an ELF core of a running process.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, bail};
use nix::sys::statvfs::statvfs;
use podopsy_coredump::{CoreError, CoreOptions, CorePlan, CoreSummary};
use podopsy_doctor::capability::Capability;
use podopsy_model::text;
use podopsy_pods::{Pods, headroom};
use tempfile::NamedTempFile;

use crate::args::CoreArgs;
use crate::context::Context;
use crate::exit::{CommandOutcome, NotFound, NotPermitted, Refusal};
use crate::one_pod::{ChosenProcess, Wanted};
use crate::output::{folder_of, persist, shown, temporary};
use crate::render::units;
use crate::terminal::note;
use crate::{privilege, signals};

/// Of the node's memory and of the file system, a twentieth stays free: the kubelet evicts pods before either is full.
const RESERVE: u64 = 20;
/// On a large file system a twentieth is more than anyone needs: a core of some MiB is not refused beside 10 GiB of space.
const MAX_SPACE_RESERVE: u64 = 1 << 30;
/// zstd's own default: about 300 MB/s on one core.
const LEVEL: i32 = 3;

pub async fn run(context: &Context, args: CoreArgs) -> anyhow::Result<CommandOutcome> {
    privilege::require("core", &[Capability::SysPtrace])?;
    let pods = context.pods().await?;
    let chosen = ChosenProcess::find(&pods, &args.target, Wanted::Container).await?;
    refuse_own(&pods, chosen.pid)?;
    let options = CoreOptions { exclude_file_backed: args.exclude_file_backed, stream: args.stream };
    let plan = CorePlan::new(chosen.pid, options).map_err(judge)?;
    require_memory(plan.memory_needed())?;
    require_space(&args.write, plan.bytes())?;
    // Before there is a file to remove.
    let stop = signals::stop()?;
    let file = temporary(&args.write, 0o600)?;
    note(&format!(
        "core of {} ({}), about {}: it will have everything that the process has in memory, such as passwords and keys",
        chosen.describe(),
        program(chosen.pid),
        units::bytes(plan.bytes())
    ));
    let cancelled = Arc::new(AtomicBool::new(false));
    let writer = Writer { plan, file, path: args.write.clone(), cancelled: cancelled.clone() };
    let mut writing = tokio::task::spawn_blocking(move || writer.write());
    let written = tokio::select! {
        written = &mut writing => written,
        _ = stop => {
            cancelled.store(true, Relaxed);
            writing.await
        }
    };
    let summary = written??;
    report(&args.write, chosen.pid, &summary);
    Ok(CommandOutcome::Success)
}

/// What the thread that writes has.
struct Writer {
    plan: CorePlan,
    file: NamedTempFile,
    path: PathBuf,
    cancelled: Arc<AtomicBool>,
}

impl Writer {
    /// Without a complete core, the temporary file is removed.
    fn write(self) -> anyhow::Result<CoreSummary> {
        let mut out = BufWriter::with_capacity(1 << 20, self.file.as_file());
        let summary = if self.path.extension().is_some_and(|extension| extension == "zst") {
            let mut compressed = zstd::Encoder::new(&mut out, LEVEL)?;
            let summary = self.plan.write(&self.cancelled, &mut compressed).map_err(judge)?;
            compressed.finish()?;
            summary
        } else {
            self.plan.write(&self.cancelled, &mut out).map_err(judge)?
        };
        out.flush()?;
        drop(out);
        persist(self.file, &self.path).with_context(|| format!("cannot write {}", shown(&self.path)))?;
        Ok(summary)
    }
}

/// Gives an error its exit code.
fn judge(error: CoreError) -> anyhow::Error {
    match error {
        CoreError::Gone(_) => NotFound(format!("core: {error}")).into(),
        CoreError::Refused { .. } => NotPermitted(format!("core: {error}")).into(),
        CoreError::Cancelled => {
            anyhow::anyhow!("core: stopped; the process goes on, and nothing was written")
        }
        error => anyhow::Error::from(error).context("core"),
    }
}

/// podopsy's copy is charged to its own cgroup, which must not be that of the process.
fn refuse_own(pods: &Pods, pid: u32) -> anyhow::Result<()> {
    if pid == std::process::id() {
        bail!(Refusal("core: this is podopsy itself".to_owned()));
    }
    let own = pods.cgroup_of_pid(std::process::id());
    if own.is_some() && own == pods.cgroup_of_pid(pid) && pods.container_key(own.unwrap_or(0)).is_some() {
        bail!(Refusal(
            "core: podopsy runs in the container of this process, so that the copy could cost it its memory limit; run it on \
             the node"
                .to_owned()
        ));
    }
    Ok(())
}

fn require_memory(needed: u64) -> anyhow::Result<()> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    let free = bytes("MemAvailable").saturating_sub(bytes("MemTotal") / RESERVE);
    let own = headroom::find().map_or(u64::MAX, |headroom| headroom.free);
    if needed > free.min(own) {
        let whose = if own < free { "podopsy's own memory limit" } else { "the node's memory" };
        bail!(
            "core: the copy takes {}, and {} of {whose} may be used; --stream needs no copy and pauses the process for \
             longer, --exclude-file-backed makes it smaller",
            units::bytes(needed),
            units::bytes(free.min(own))
        );
    }
    Ok(())
}

/// Compression makes a core smaller, by how much is not known: the space has to be enough without it.
fn require_space(path: &Path, needed: u64) -> anyhow::Result<()> {
    let folder = folder_of(path);
    let space = statvfs(folder).with_context(|| format!("cannot write {}", shown(path)))?;
    let [whole, available] =
        [space.blocks(), space.blocks_available()].map(|blocks| blocks.saturating_mul(space.fragment_size()));
    let free = usable_space(whole, available);
    if needed > free {
        bail!(
            "core: it may take {}, and {} may be used in {}: name a file on another file system",
            units::bytes(needed),
            units::bytes(free),
            shown(folder)
        );
    }
    Ok(())
}

/// What of a file system's available bytes a core may take.
fn usable_space(whole: u64, available: u64) -> u64 {
    available.saturating_sub((whole / RESERVE).min(MAX_SPACE_RESERVE))
}

fn program(pid: u32) -> String {
    let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{}[{pid}]", text::escape_bytes(comm.strip_suffix(b"\n").unwrap_or(&comm)))
}

fn report(path: &Path, pid: u32, summary: &CoreSummary) {
    let size = fs::metadata(path).map_or(0, |file| file.len());
    note(&format!(
        "wrote {}: {}, {} uncompressed, {}, {}",
        shown(path),
        units::bytes(size),
        units::bytes(summary.bytes),
        units::plural(summary.threads as u64, "thread"),
        units::plural(summary.mappings as u64, "mapping")
    ));
    let (pause, stopping) = (summary.pause.as_nanos() as u64, summary.stopping.as_nanos() as u64);
    note(&format!(
        "the process was paused for {} ({} of it until all threads had stopped)",
        units::nanoseconds(pause),
        units::nanoseconds(stopping)
    ));
    for (bytes, what) in [
        (summary.swapped, "in swap: left out"),
        (summary.excluded, "excluded by the program (MADV_DONTDUMP), or of devices: left out"),
        (summary.unreadable, "could not be read: zeros"),
    ] {
        if bytes > 0 {
            note(&format!("{} {what}", units::bytes(bytes)));
        }
    }
    let unpack =
        if path.extension().is_some_and(|extension| extension == "zst") { "zstd -d, then " } else { "" };
    note(&format!("open it with {unpack}gdb -ex 'set sysroot /proc/{pid}/root' /proc/{pid}/exe CORE"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_twentieth_of_a_small_file_system_and_a_gibibyte_of_a_large_one_stay_free() {
        assert_eq!(usable_space(10 * GIB, 4 * GIB), 4 * GIB - GIB / 2);
        assert_eq!(usable_space(252 * GIB, 12 * GIB), 11 * GIB);
        assert_eq!(usable_space(252 * GIB, GIB / 2), 0);
    }
}
