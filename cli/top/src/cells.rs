//! A row's values as short texts.

use crate::data::ContainerRow;

/// What is not known.
const UNKNOWN: &str = "-";
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Node,
    Pod,
    Container,
    Cpu,
    Throttled,
    Memory,
    Limit,
    Percent,
    Trend,
    LimitIn,
    Dns,
    Kills,
    Restarts,
}

impl Column {
    /// In the order of the table.
    pub const ALL: [Column; 13] = [
        Column::Node,
        Column::Pod,
        Column::Container,
        Column::Cpu,
        Column::Throttled,
        Column::Memory,
        Column::Limit,
        Column::Percent,
        Column::Trend,
        Column::LimitIn,
        Column::Dns,
        Column::Kills,
        Column::Restarts,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Column::Node => "NODE",
            Column::Pod => "POD",
            Column::Container => "CONTAINER",
            Column::Cpu => "CPU",
            Column::Throttled => "THROTTLED",
            Column::Memory => "MEMORY",
            Column::Limit => "LIMIT",
            Column::Percent => "%",
            Column::Trend => "TREND",
            Column::LimitIn => "LIMIT IN",
            Column::Dns => "DNS ERR/S",
            Column::Kills => "KILLS",
            Column::Restarts => "RESTARTS",
        }
    }

    /// Columns that a narrow screen leaves out first have the highest number.
    pub fn rank(self) -> u8 {
        match self {
            Column::Pod => 0,
            Column::Memory => 1,
            Column::Percent => 2,
            Column::Cpu => 3,
            Column::Kills => 4,
            Column::LimitIn => 5,
            Column::Dns => 6,
            Column::Trend => 7,
            Column::Restarts => 8,
            Column::Container => 9,
            Column::Throttled => 10,
            Column::Limit => 11,
            Column::Node => 12,
        }
    }

    pub fn is_name(self) -> bool {
        matches!(self, Column::Node | Column::Pod | Column::Container)
    }

    /// The value; names are as they came, and not yet safe to print.
    pub fn text(self, row: &ContainerRow) -> String {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
        match self {
            Column::Node => or_unknown(row.node.clone()),
            Column::Pod => format!("{}/{}", row.namespace, row.pod),
            Column::Container => row.container.clone(),
            Column::Cpu => or_unknown(row.cpu_millis.map(|millis| format!("{millis}m"))),
            Column::Throttled => or_unknown(row.throttled_percent.map(|share| format!("{share:.0} %"))),
            Column::Memory => or_unknown(row.memory_bytes.map(bytes)),
            Column::Limit => or_unknown(row.limit_bytes.map(bytes)),
            Column::Percent => or_unknown(row.memory_percent().map(|share| format!("{share:.0} %"))),
            Column::Trend => sparkline(&row.memory_samples, TREND_CELLS, row.limit_bytes),
            Column::LimitIn => or_unknown(row.seconds_to_limit().map(seconds)),
            Column::Dns => or_unknown(row.dns_failures_per_second.map(|rate| format!("{rate:.1}"))),
            Column::Kills => or_unknown(row.oom_kills.map(|kills| kills.to_string())),
            Column::Restarts => or_unknown(row.restarts.map(|restarts| restarts.to_string())),
        }
    }
}

/// The width of [`Column::Trend`].
const TREND_CELLS: usize = 12;

/// `62.1Mi`, as kubectl writes amounts.
fn bytes(count: u64) -> String {
    let units = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1}{}", units[unit])
}

/// `45s`, `4m10s`, `3h20m`.
fn seconds(count: u64) -> String {
    match count {
        0..60 => format!("{count}s"),
        60..3600 => format!("{}m{:02}s", count / 60, count % 60),
        _ => format!("{}h{:02}m", count / 3600, count % 3600 / 60),
    }
}

/// A bar for the largest value of each of `width` parts, the newest last. The highest bar is `full`, or the largest value.
fn sparkline(values: &[u64], width: usize, full: Option<u64>) -> String {
    let highest = full.or(values.iter().max().copied()).filter(|&highest| highest > 0);
    let (Some(highest), false) = (highest, values.is_empty()) else { return String::new() };
    let part = values.len().div_ceil(width).max(1);
    let bar = |values: &[u64]| {
        let value = u128::from(values.iter().max().copied().unwrap_or(0));
        let level = value * (BARS.len() as u128 - 1) / u128::from(highest);
        BARS[usize::try_from(level).map_or(0, |level| level.min(BARS.len() - 1))]
    };
    // The newest part is complete; the oldest may be smaller.
    let first = values.len() % part;
    let (oldest, rest) = values.split_at(first);
    let oldest = (first > 0).then(|| bar(oldest));
    oldest.into_iter().chain(rest.chunks(part).map(bar)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::row;

    #[test]
    fn a_sparkline_shows_the_largest_value_of_each_part() {
        assert_eq!(sparkline(&[0, 1, 2, 3, 4, 5, 6, 7], 8, None), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[7, 0, 0, 0, 7], 2, None), "██");
        assert_eq!(sparkline(&[0, 0, 0, 0, 7], 3, None), "▁▁█");
        assert_eq!(sparkline(&[7, 14, 28], 3, Some(14)), "▄██", "of a limit");
        assert_eq!((sparkline(&[], 8, Some(1)), sparkline(&[0, 0], 8, None)), (String::new(), String::new()));
        assert_eq!(sparkline(&[u64::MAX; 100], 12, None).chars().count(), 12);
    }

    #[test]
    fn amounts_are_short_and_what_is_not_known_is_a_dash() {
        let texts: Vec<String> =
            Column::ALL.iter().map(|column| column.text(&row("cart", "app", 40))).collect();
        let expected =
            ["-", "shop/cart", "app", "250m", "-", "40.0Mi", "64.0Mi", "62 %", "", "-", "-", "0", "2"];
        assert_eq!(texts, expected);
        assert_eq!([5, 250, 12_000].map(seconds), ["5s", "4m10s", "3h20m"]);
        assert_eq!(bytes(u64::MAX), "16.0Ei");
    }
}
