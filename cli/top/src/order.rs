//! Which rows are shown, and in which order.

use crate::data::ContainerRow;

/// What rows are sorted by: the largest first, and names from A to Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortKey {
    Cpu,
    Memory,
    #[default]
    Percent,
    /// The time to the limit, the shortest first.
    LimitIn,
    Throttled,
    Dns,
    Kills,
    Restarts,
    Name,
}

impl SortKey {
    pub const ALL: [SortKey; 9] = [
        SortKey::Cpu,
        SortKey::Memory,
        SortKey::Percent,
        SortKey::LimitIn,
        SortKey::Throttled,
        SortKey::Dns,
        SortKey::Kills,
        SortKey::Restarts,
        SortKey::Name,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            SortKey::Cpu => "cpu",
            SortKey::Memory => "memory",
            SortKey::Percent => "percent",
            SortKey::LimitIn => "limit-in",
            SortKey::Throttled => "throttled",
            SortKey::Dns => "dns",
            SortKey::Kills => "kills",
            SortKey::Restarts => "restarts",
            SortKey::Name => "name",
        }
    }

    /// The one `steps` further in [`SortKey::ALL`], round and round.
    pub fn step(self, steps: isize) -> SortKey {
        let at = SortKey::ALL.iter().position(|&one| one == self).unwrap_or(0);
        let count = SortKey::ALL.len() as isize;
        SortKey::ALL[(at as isize + steps).rem_euclid(count) as usize]
    }

    /// Larger values come first; what is not known comes last. None: by name alone.
    fn value(self, row: &ContainerRow) -> Option<f64> {
        match self {
            SortKey::Cpu => row.cpu_millis.map(|millis| millis as f64),
            SortKey::Memory => row.memory_bytes.map(|bytes| bytes as f64),
            SortKey::Percent => row.memory_percent(),
            SortKey::LimitIn => row.seconds_to_limit().map(|seconds| -(seconds as f64)),
            SortKey::Throttled => row.throttled_percent,
            SortKey::Dns => row.dns_failures_per_second,
            SortKey::Kills => row.oom_kills.map(|kills| kills as f64),
            SortKey::Restarts => row.restarts.map(f64::from),
            SortKey::Name => None,
        }
    }
}

/// Sorts rows. Equal ones are in the order of their names, so that they do not change places all the time.
pub fn sort(rows: &mut [ContainerRow], key: SortKey, is_reversed: bool) {
    let compare = |a: &ContainerRow, b: &ContainerRow| {
        let order = match (key.value(a), key.value(b)) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        order.then_with(|| a.key().cmp(&b.key()))
    };
    rows.sort_by(|a, b| match compare(a, b) {
        order if is_reversed => order.reverse(),
        order => order,
    });
}

/// Whether the names of a row contain the text, in any case.
pub fn matches(row: &ContainerRow, filter: &str) -> bool {
    let filter = filter.to_lowercase();
    let node = row.node.as_deref().unwrap_or_default();
    let names = format!("{}/{}/{} {node}", row.namespace, row.pod, row.container);
    filter.is_empty() || names.to_lowercase().contains(&filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::row;

    #[test]
    fn the_largest_come_first_and_the_unknown_last() {
        let unknown = ContainerRow { limit_bytes: None, ..row("a", "app", 60) };
        let mut rows = vec![unknown, row("b", "app", 1), row("d", "app", 40), row("c", "app", 40)];
        let names = |rows: &[ContainerRow]| rows.iter().map(|row| row.pod.as_str()).collect::<String>();
        sort(&mut rows, SortKey::Percent, false);
        assert_eq!(names(&rows), "cdba");
        sort(&mut rows, SortKey::Name, false);
        assert_eq!(names(&rows), "abcd");
        sort(&mut rows, SortKey::Memory, true);
        assert_eq!(names(&rows), "bdca");
        assert_eq!((SortKey::Cpu.step(-1), SortKey::Name.step(1)), (SortKey::Name, SortKey::Cpu));
    }

    #[test]
    fn a_filter_is_a_part_of_the_names() {
        let row = ContainerRow { node: Some("node-7".into()), ..row("Cart", "app", 1) };
        for (filter, expected) in
            [("", true), ("shop/c", true), ("CART/app", true), ("node-7", true), ("x", false)]
        {
            assert_eq!(matches(&row, filter), expected, "{filter}");
        }
    }
}
