//! What was charged to the cgroup whose limit was met, by kind, and what of it no process holds.

use podopsy_model::charged::{ChargedMemory, KernelMemory};
use podopsy_model::incident::OomIncident;

use super::oom::how;
use super::units;

/// Kinds with less than this share of the usage are not explained.
const SHARE_MIN: f64 = 0.05;
/// Parts of kernel memory that are shown, the largest first.
const PARTS: usize = 2;
/// The share of the usage that may be in no kind: the kernel charges in batches.
const OPEN_MAX: f64 = 0.1;

/// Empty if the limit is no cgroup's.
pub fn text(incident: &OomIncident) -> String {
    match &incident.charged {
        Some(charged) => lines(charged).join("\n"),
        None if incident.limit.path.is_some() => {
            "by kind not known: neither the kernel's log nor the cgroup had statistics of this kill"
                .to_owned()
        }
        None => String::new(),
    }
}

fn lines(charged: &ChargedMemory) -> Vec<String> {
    let when = match charged.source.as_str() {
        "kernel log" => "at the kill (observed: kernel log)".to_owned(),
        source => format!("a moment after the kill (observed: {source})"),
    };
    let mut kinds =
        vec![("anon", charged.anon_bytes), ("files", charged.file_bytes), ("shmem", charged.shmem_bytes)];
    kinds.extend(charged.kernel.as_ref().map(|kernel| ("kernel", kernel.bytes)));
    kinds.extend(charged.sock_bytes.filter(|&bytes| bytes > 0).map(|bytes| ("sockets", bytes)));
    let sum = kinds.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
    let open = charged.usage_bytes.saturating_sub(sum);
    if open as f64 > OPEN_MAX * charged.usage_bytes as f64 {
        kinds.push(("in no kind", open));
    }
    let kinds: Vec<String> =
        kinds.into_iter().map(|(kind, bytes)| format!("{kind} {}", units::bytes(bytes))).collect();
    let mut lines = vec![format!("{} {when}", units::bytes(charged.usage_bytes)), kinds.join(", ")];
    let is_worth_a_line = |bytes: u64| bytes as f64 >= SHARE_MIN * charged.usage_bytes as f64;
    if let Some(bytes) = charged.unheld_shmem_bytes.filter(|&bytes| bytes > 0 && is_worth_a_line(bytes)) {
        lines.push(format!(
            "{} of it is shmem that no process holds: tmpfs, e.g. a memory-backed emptyDir",
            units::bytes(bytes)
        ));
        lines.push("(inferred: no process has mapped it)".to_owned());
    }
    lines.extend(charged.kernel.iter().filter(|kernel| is_worth_a_line(kernel.bytes)).flat_map(kernel));
    lines
}

fn kernel(kernel: &KernelMemory) -> Vec<String> {
    let text = format!("kernel memory: {} ({})", units::bytes(kernel.bytes), how(kernel.how));
    let (Some(parts), Some(rest)) = (&kernel.parts, kernel.rest_bytes()) else {
        return vec![format!("{text}: pipes, slab, page tables, … (v1 has one figure)")];
    };
    let mut named: Vec<(&str, u64)> = parts.named().into_iter().filter(|(_, bytes)| *bytes > 0).collect();
    named.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    named.truncate(PARTS);
    let named: Vec<String> =
        named.into_iter().map(|(name, bytes)| format!("{name} {}, ", units::bytes(bytes))).collect();
    let rest = units::bytes(rest);
    vec![text, format!("of it {}{rest} in no counted part, e.g. pipes (inferred)", named.concat())]
}

#[cfg(test)]
mod tests {
    use podopsy_model::charged::KernelParts;
    use podopsy_model::incident::Evidence;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn charged() -> ChargedMemory {
        ChargedMemory {
            source: "kernel log".into(),
            usage_bytes: 64 * MIB,
            anon_bytes: 7 * MIB,
            file_bytes: 0,
            shmem_bytes: 56 * MIB,
            kernel: Some(KernelMemory { bytes: MIB, how: Evidence::Observed, parts: None }),
            sock_bytes: None,
            unheld_shmem_bytes: Some(56 * MIB),
        }
    }

    #[test]
    fn shared_memory_that_no_process_holds_is_explained() {
        assert_eq!(
            lines(&charged()),
            [
                "64.0 MiB at the kill (observed: kernel log)",
                "anon 7.0 MiB, files 0 B, shmem 56.0 MiB, kernel 1.0 MiB",
                "56.0 MiB of it is shmem that no process holds: tmpfs, e.g. a memory-backed emptyDir",
                "(inferred: no process has mapped it)",
            ]
        );
    }

    #[test]
    fn kernel_memory_is_shown_with_its_parts_and_what_is_in_none_of_them() {
        let parts = KernelParts { slab_bytes: 2 * MIB, stacks_bytes: MIB, ..KernelParts::default() };
        let kernel = |parts| Some(KernelMemory { bytes: 61 * MIB, how: Evidence::Observed, parts });
        let one = |parts| ChargedMemory {
            kernel: kernel(parts),
            shmem_bytes: 0,
            unheld_shmem_bytes: None,
            ..charged()
        };
        assert_eq!(
            lines(&one(Some(parts)))[2..],
            [
                "kernel memory: 61.0 MiB (observed)",
                "of it slab 2.0 MiB, stacks 1.0 MiB, 58.0 MiB in no counted part, e.g. pipes (inferred)",
            ]
        );
        assert_eq!(
            lines(&one(None))[2..],
            ["kernel memory: 61.0 MiB (observed): pipes, slab, page tables, … (v1 has one figure)"]
        );
        let all = [charged(), one(None), one(Some(parts))];
        let longest = all.iter().flat_map(lines).map(|line| line.chars().count()).max();
        assert!(longest <= Some(87), "it fits a terminal of 100 columns: {longest:?}");
    }

    #[test]
    fn what_is_in_no_kind_and_what_is_not_known_is_shown_as_that() {
        let open =
            ChargedMemory { kernel: None, shmem_bytes: 20 * MIB, unheld_shmem_bytes: None, ..charged() };
        assert_eq!(lines(&open)[1..], ["anon 7.0 MiB, files 0 B, shmem 20.0 MiB, in no kind 37.0 MiB"]);
        let mut incident = *super::super::oom::tests::event("3f2a-1", 5).incident.unwrap();
        assert!(text(&incident).starts_with("by kind not known"));
        incident.limit.path = None;
        assert_eq!(text(&incident), "");
    }
}
