//! Prints the samples: a line each minute during the run, tables and verdicts at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::curve::{self, Verdict};
use super::sample::Sample;

/// A column of the table: a value of each sample, which is judged.
struct Column {
    name: &'static str,
    of: fn(&Sample) -> f64,
    /// The growth per hour that is ignored, in the column's unit.
    slack: f64,
    decimals: usize,
}

const COLUMNS: &[Column] = &[
    Column { name: "RSS, MiB", of: |s| s.rss_mib, slack: 1.0, decimals: 1 },
    Column { name: "PSS, MiB", of: |s| s.pss_mib, slack: 1.0, decimals: 1 },
    Column { name: "heap and stacks, MiB", of: |s| s.anonymous_mib, slack: 1.0, decimals: 1 },
    Column { name: "BPF maps (kernel), MiB", of: |s| s.maps_mib, slack: 1.0, decimals: 1 },
    Column { name: "state folder, MiB", of: |s| s.disk_mib, slack: 1.0, decimals: 1 },
    Column { name: "descriptors", of: |s| s.descriptors, slack: 2.0, decimals: 0 },
    Column { name: "threads", of: |s| s.threads, slack: 2.0, decimals: 0 },
    Column { name: "inotify watches", of: |s| s.watches, slack: 4.0, decimals: 0 },
    Column { name: "lines of /metrics", of: |s| s.series, slack: 10.0, decimals: 0 },
];

pub const HEAD: &str = "| min | CPU % | RSS MiB | PSS MiB | heap MiB | maps MiB | disk MiB | fds | threads | watches \
    | series | events | lost | dropped |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

/// A minute: its last sample, and the CPU since `before`, in percent of one.
pub fn minute(before: &Sample, now: &Sample) -> String {
    let mut line = format!("| {:.0} | {:.2} ", now.seconds / 60.0, cpu_percent(before, now));
    for (value, decimals) in [
        (now.rss_mib, 1),
        (now.pss_mib, 1),
        (now.anonymous_mib, 1),
        (now.maps_mib, 1),
        (now.disk_mib, 1),
        (now.descriptors, 0),
        (now.threads, 0),
        (now.watches, 0),
        (now.series, 0),
        (now.events, 0),
        (now.losses.values().sum::<u64>() as f64, 0),
        (now.dropped, 0),
    ] {
        let _ = write!(line, "| {value:.decimals$} ");
    }
    line + "|"
}

/// The table at the end, and whether something grew.
pub fn table(samples: &[Sample]) -> (String, Verdict) {
    let mut text =
        "| | first quarter | last quarter | an hour, by the last half | |\n|---|---|---|---|---|\n"
            .to_owned();
    let mut worst = Verdict::Flat;
    let cpu: Vec<_> =
        samples.windows(2).map(|pair| (pair[1].seconds / 3600.0, cpu_percent(&pair[0], &pair[1]))).collect();
    let (first, last) = curve::quarters(&cpu);
    let slope = curve::fit(curve::last_half(&cpu)).map_or(f64::NAN, |line| line.slope);
    let _ = writeln!(
        text,
        "| CPU, % of one | {first:.2} | {last:.2} | {slope:+.2} | not judged: it includes other work |"
    );
    for column in COLUMNS {
        let points: Vec<_> =
            samples.iter().map(|sample| (sample.seconds / 3600.0, (column.of)(sample))).collect();
        let (first, last) = curve::quarters(&points);
        let Some(line) = curve::fit(curve::last_half(&points)) else { continue };
        let verdict = curve::judge(&line, column.slack);
        let Column { name, decimals, .. } = column;
        let _ = writeln!(
            text,
            "| {name} | {first:.decimals$} | {last:.decimals$} | {:+.2} ± {:.2} | {} |",
            line.slope,
            2.0 * line.error,
            verdict.as_str()
        );
        worst = match (worst, verdict) {
            (Verdict::Grows, _) | (_, Verdict::Grows) => Verdict::Grows,
            (Verdict::Unclear, _) | (_, Verdict::Unclear) => Verdict::Unclear,
            _ => Verdict::Flat,
        };
    }
    let allowed = curve::ALLOWED * 100.0;
    let _ = writeln!(
        text,
        "\nflat: the line through the last half rises by no more than {allowed:.0} % of its mean an hour, or 1 MiB, 2 \
         descriptors or threads, 4 watches, 10 lines; not clear: by more, but not by more than twice the slope's error"
    );
    (text, worst)
}

/// The losses between two samples, by counter.
pub fn lost(before: &Sample, now: &Sample) -> BTreeMap<String, u64> {
    let since = |(name, count): (&String, &u64)| {
        let new = count - before.losses.get(name).copied().unwrap_or(0).min(*count);
        (new > 0).then(|| (name.clone(), new))
    };
    now.losses.iter().filter_map(since).collect()
}

/// In percent of one CPU.
pub fn cpu_percent(before: &Sample, now: &Sample) -> f64 {
    let seconds = now.seconds - before.seconds;
    if seconds <= 0.0 { 0.0 } else { (now.cpu_seconds - before.cpu_seconds) / seconds * 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half an hour, one sample in 10 s, whose memory grows by so much an hour.
    fn run(growth_mib: f64) -> Vec<Sample> {
        let sample = |n: u32| {
            let seconds = f64::from(n) * 10.0;
            Sample {
                seconds,
                cpu_seconds: seconds / 50.0,
                rss_mib: 60.0 + growth_mib * seconds / 3600.0,
                descriptors: 40.0,
                losses: BTreeMap::from([("oom_ring".to_owned(), u64::from(n / 60))]),
                ..Sample::default()
            }
        };
        (0..180).map(sample).collect()
    }

    #[test]
    fn the_table_marks_the_column_that_grows() {
        let (text, verdict) = table(&run(0.5));
        assert_eq!(verdict, Verdict::Flat, "{text}");
        assert!(text.contains("| CPU, % of one | 2.00 | 2.00 |"), "{text}");
        let (text, verdict) = table(&run(20.0));
        assert_eq!(verdict, Verdict::Grows);
        let line = text.lines().find(|line| line.contains("grows")).unwrap();
        assert_eq!(line, "| RSS, MiB | 61.2 | 68.7 | +20.00 ± 0.00 | **grows** |");
    }

    #[test]
    fn a_minute_and_its_losses_are_its_own() {
        let all = run(0.0);
        assert_eq!(lost(&all[0], &all[6]), BTreeMap::new());
        assert_eq!(lost(&all[59], &all[120]), BTreeMap::from([("oom_ring".to_owned(), 2)]));
        let line = minute(&all[0], &all[6]);
        assert!(line.starts_with("| 1 | 2.00 | 60.0 "), "{line}");
        assert_eq!(line.matches('|').count(), HEAD.lines().next().unwrap().matches('|').count());
    }
}
