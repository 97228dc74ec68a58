//! The memory that was charged to a cgroup when its limit was met, by kind, and what of it no process holds. Pure functions.

use serde::{Deserialize, Serialize};

use crate::incident::Evidence;

/// The memory charged to the limited cgroup and those below it. The kinds do not overlap, and their sum is about
/// `usage_bytes`: the kernel charges in batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChargedMemory {
    /// `kernel log`: the OOM killer's own statistics, of the moment of the kill; `memory.stat`: read a moment after it.
    pub source: String,
    pub usage_bytes: u64,
    pub anon_bytes: u64,
    /// Page cache without shared memory.
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    /// Null: not known.
    pub kernel: Option<KernelMemory>,
    /// Buffers of sockets; null: cgroup v1 does not count them here.
    pub sock_bytes: Option<u64>,
    /// Shared memory that no process has mapped, at least: `shmem_bytes` less all mapped files and shared memory. Null: not
    /// known.
    pub unheld_shmem_bytes: Option<u64>,
}

/// Memory that the kernel holds for processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KernelMemory {
    pub bytes: u64,
    /// Inferred: the kernel does not count it as a whole (v2 before 5.18), so it is the rest of the usage.
    pub how: Evidence,
    /// Null: cgroup v1 does not count its parts.
    pub parts: Option<KernelParts>,
}

/// The parts of kernel memory that are counted. What is in none of them is mostly in buffers of pipes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KernelParts {
    /// Dentries, inodes, and other objects of the kernel's.
    pub slab_bytes: u64,
    pub page_tables_bytes: u64,
    pub stacks_bytes: u64,
    pub per_cpu_bytes: u64,
    pub vmalloc_bytes: u64,
}

impl KernelParts {
    /// Each part with its name.
    pub fn named(&self) -> [(&'static str, u64); 5] {
        [
            ("slab", self.slab_bytes),
            ("page tables", self.page_tables_bytes),
            ("stacks", self.stacks_bytes),
            ("per-CPU data", self.per_cpu_bytes),
            ("vmalloc", self.vmalloc_bytes),
        ]
    }
}

impl KernelMemory {
    /// What is in no part that is counted.
    pub fn rest_bytes(&self) -> Option<u64> {
        let parts = self.parts?.named().iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
        Some(self.bytes.saturating_sub(parts))
    }
}

/// The share of the usage from which a kind of memory that no process holds is worth a line of advice.
const LARGE: f64 = 0.25;

impl ChargedMemory {
    /// Memory that no process holds, where it is a large part of what is charged, in one line.
    pub fn advice(&self) -> Option<String> {
        let is_large = |bytes: u64| self.usage_bytes > 0 && bytes as f64 >= LARGE * self.usage_bytes as f64;
        let usage = self.usage_bytes >> 20;
        if let Some(bytes) = self.unheld_shmem_bytes.filter(|&bytes| is_large(bytes)) {
            return Some(format!(
                "{} MiB of {usage} MiB is shmem that no process holds: tmpfs, e.g. a memory-backed emptyDir",
                bytes >> 20
            ));
        }
        let kernel = self.kernel.as_ref().filter(|kernel| is_large(kernel.bytes));
        if let Some(kernel) = kernel {
            let largest = kernel.parts.and_then(|parts| {
                let all = parts
                    .named()
                    .into_iter()
                    .chain([("not counted by kind, e.g. pipes", kernel.rest_bytes()?)]);
                all.max_by_key(|(_, bytes)| *bytes)
            });
            let of = largest.map_or_else(
                || "pipes, slab, page tables, …".to_owned(),
                |(name, bytes)| format!("most of it {name}: {} MiB", bytes >> 20),
            );
            return Some(format!("{} MiB of {usage} MiB is kernel memory ({of})", kernel.bytes >> 20));
        }
        let sock = self.sock_bytes.filter(|&bytes| is_large(bytes))?;
        Some(format!("{} MiB of {usage} MiB is buffers of sockets", sock >> 20))
    }
}

#[cfg(test)]
mod tests {
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
    fn shared_memory_that_no_process_holds_is_named_when_it_is_large() {
        assert_eq!(
            charged().advice().unwrap(),
            "56 MiB of 64 MiB is shmem that no process holds: tmpfs, e.g. a memory-backed emptyDir"
        );
        let small = ChargedMemory { unheld_shmem_bytes: Some(MIB), ..charged() };
        let unknown = ChargedMemory { unheld_shmem_bytes: None, ..charged() };
        assert_eq!((small.advice(), unknown.advice()), (None, None));
    }

    #[test]
    fn kernel_memory_is_named_with_its_largest_part_where_parts_are_counted() {
        let kernel = |parts| Some(KernelMemory { bytes: 61 * MIB, how: Evidence::Observed, parts });
        let one = |parts| ChargedMemory { kernel: kernel(parts), unheld_shmem_bytes: None, ..charged() };
        assert_eq!(
            one(None).advice().unwrap(),
            "61 MiB of 64 MiB is kernel memory (pipes, slab, page tables, …)"
        );
        let parts = KernelParts { slab_bytes: 50 * MIB, stacks_bytes: MIB, ..KernelParts::default() };
        assert!(one(Some(parts)).advice().unwrap().ends_with("(most of it slab: 50 MiB)"));
        let parts = KernelParts { slab_bytes: 2 * MIB, ..KernelParts::default() };
        assert_eq!(one(Some(parts)).kernel.unwrap().rest_bytes(), Some(59 * MIB));
        let line = one(Some(parts)).advice().unwrap();
        assert!(line.ends_with("(most of it not counted by kind, e.g. pipes: 59 MiB)"), "{line}");
    }
}
