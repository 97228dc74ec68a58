//! Opens the perf map that a language runtime writes for its code, `/tmp/perf-PID.map`, and has it read.
//!
//! The file belongs to the container: it lies in the container's mount namespace, under the pid that the process has in
//! its own pid namespace. It is held open from first sight, like executables, and grows while the process lives. Must not
//! depend on: ELF, mappings, frames.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use podopsy_opener::{FileHandle, Openers, Target};
use podopsy_worker::{Parser, Tenant};

use super::{maps, open};
use crate::{StackLossReason, StackLosses};

/// Opens the map of a live process. Returns none if there is no map, or if it cannot be opened safely.
pub(super) fn open(
    openers: &Openers,
    tenant: Tenant,
    pid: u32,
    losses: &mut StackLosses,
) -> Option<FileHandle> {
    let path = format!("/tmp/perf-{}.map", namespace_pid(pid)?);
    let target = Target { tenant, pid, may_hang: maps::Mounts::read(pid).has_remote() };
    let opened = openers.file_in_root(target, path.as_bytes()).map_err(open::loss);
    if let Err(reason @ (StackLossReason::FileSystemNoAnswer | StackLossReason::OpenerUnavailable)) = opened {
        losses.add(reason, 1);
    }
    opened.ok()
}

/// The names of addresses, in their order. If the parser gives up on the map, that stands in place of the names.
pub(super) fn names(
    tenant: Tenant,
    map: &FileHandle,
    addresses: &[u64],
    parser: &mut Parser,
    losses: &mut StackLosses,
) -> Vec<Option<Arc<str>>> {
    match parser.perf_map(tenant, map, addresses.to_vec()) {
        // The parser may have been taken over by the map: it promises one name for each address.
        Ok(Ok(found)) if found.names.len() == addresses.len() => {
            if found.truncated {
                losses.add(StackLossReason::PerfMapTruncated, 1);
            }
            found.names.into_iter().map(|name| name.map(Arc::from)).collect()
        }
        Ok(_) => {
            losses.add(StackLossReason::PerfMapUnreadable, 1);
            vec![None; addresses.len()]
        }
        Err(failure) => {
            losses.add(failure.loss(), 1);
            let text = Arc::from(format!("[symbols: gave up on the perf map: {failure}]"));
            vec![Some(text); addresses.len()]
        }
    }
}

/// The pid that the process has in its own pid namespace: the last one in NSpid.
fn namespace_pid(pid: u32) -> Option<u32> {
    // Bytes, not a string: the first line is the comm, which may be any bytes.
    let mut status = Vec::new();
    File::open(format!("/proc/{pid}/status")).ok()?.take(64 << 10).read_to_end(&mut status).ok()?;
    let line = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"))?;
    std::str::from_utf8(line).ok()?.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_map_has_none() {
        assert_eq!(namespace_pid(std::process::id()), Some(std::process::id()));
        let mut losses = StackLosses::default();
        assert!(open(&Openers::in_threads(), 1, std::process::id(), &mut losses).is_none());
        assert!(losses.is_empty());
    }
}
