//! The lines of a cgroup's statistics, `anon 66125824`: `memory.stat`, and what the OOM killer prints of it. Pure: no I/O.
//!
//! Both versions print the values of a cgroup with those below it. v1 prints the cgroup's own as well, under the same names
//! without `total_`. Must not depend on containers or pods.

/// The values that are kept, by their names in the kernel (`mm/memcontrol.c`).
const KEYS: [&str; 15] = [
    "anon",
    "file",
    "shmem",
    "file_mapped",
    "kernel",
    "kernel_stack",
    "pagetables",
    "percpu",
    "vmalloc",
    "slab",
    "sock",
    "total_rss",
    "total_cache",
    "total_shmem",
    "total_mapped_file",
];

/// What was read so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    values: [Option<u64>; KEYS.len()],
}

/// What user space can reach, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserMemory {
    pub anon_bytes: u64,
    /// Page cache without shared memory.
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    /// What processes have mapped of `file` and `shmem` together.
    pub mapped_bytes: Option<u64>,
}

impl MemoryStatistics {
    pub fn parse(text: &[u8]) -> MemoryStatistics {
        let mut all = MemoryStatistics::default();
        text.split(|&b| b == b'\n').for_each(|line| {
            all.add(line);
        });
        all
    }

    /// Adds a line; false: it is not one of statistics. The first value of a name is kept.
    pub fn add(&mut self, line: &[u8]) -> bool {
        let Some((name, value)) = split(line) else { return false };
        if let Some(at) = KEYS.iter().position(|key| key.as_bytes() == name) {
            self.values[at] = self.values[at].or(Some(value));
        }
        true
    }

    /// A value in bytes; None: it is not among the lines.
    pub fn get(&self, key: &str) -> Option<u64> {
        KEYS.iter().position(|known| *known == key).and_then(|at| self.values[at])
    }

    /// None: the lines are not complete.
    pub fn user(&self) -> Option<UserMemory> {
        let is_v1 = self.get("total_rss").is_some();
        let [anon, file, shmem, mapped] = if is_v1 {
            ["total_rss", "total_cache", "total_shmem", "total_mapped_file"]
        } else {
            ["anon", "file", "shmem", "file_mapped"]
        };
        // The controller's "file" and "cache" include shared memory, which cannot be reclaimed without swap.
        let shmem_bytes = self.get(shmem)?;
        Some(UserMemory {
            anon_bytes: self.get(anon)?,
            file_bytes: self.get(file)?.saturating_sub(shmem_bytes),
            shmem_bytes,
            mapped_bytes: self.get(mapped),
        })
    }
}

/// `name number`, and nothing else.
fn split(line: &[u8]) -> Option<(&[u8], u64)> {
    let at = line.iter().position(|&b| b == b' ')?;
    let (name, value) = (&line[..at], &line[at + 1..]);
    let is_name =
        !name.is_empty() && name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_');
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    if !is_name || !is_number {
        return None;
    }
    Some((name, std::str::from_utf8(value).ok()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_give_the_memory_of_the_cgroup_with_those_below_it() {
        let v1 = b"cache 4096\nrss 1000\nshmem 1\nmapped_file 2\ntotal_cache 9000\ntotal_rss 5000\ntotal_shmem 6000\n\
                   total_mapped_file 70\n";
        let v2 = b"anon 5000\nfile 9000\nkernel 40\nshmem 6000\nfile_mapped 70\n";
        let expected =
            UserMemory { anon_bytes: 5000, file_bytes: 3000, shmem_bytes: 6000, mapped_bytes: Some(70) };
        for text in [&v1[..], v2] {
            assert_eq!(MemoryStatistics::parse(text).user(), Some(expected));
        }
        assert_eq!(MemoryStatistics::parse(v2).get("kernel"), Some(40));
    }

    #[test]
    fn incomplete_lines_give_nothing_and_the_own_values_of_v1_do_not_stand_for_those_of_the_subtree() {
        assert_eq!(MemoryStatistics::parse(b"anon 5000\nfile 9000\n").user(), None);
        assert_eq!(MemoryStatistics::parse(b"cache 4096\nrss 1000\nshmem 1\n").user(), None);
        assert_eq!(MemoryStatistics::parse(b"total_rss 1\nshmem 1\ntotal_cache 2\n").user(), None);
    }

    #[test]
    fn only_a_name_and_a_number_are_a_line_of_statistics() {
        let mut all = MemoryStatistics::default();
        for line in [
            "anon 1 2",
            "anon  1",
            "anon -1",
            "anon 99999999999999999999",
            "Anon 1",
            "anon 1kB",
            " 1",
            "anon",
            "anon ",
            "anon: 1",
            "anon[1]: segfault at 1",
        ] {
            assert!(!all.add(line.as_bytes()), "{line}");
        }
        assert!(all.add(b"anon 1") && all.add(b"anon 2") && all.add(b"unknown_to_us 3"));
        assert_eq!(all.get("anon"), Some(1), "a later line changes nothing");
    }
}
