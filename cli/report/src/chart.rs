//! Charts as SVG. They have no styles of their own: classes name the colours, which the page's style defines.

use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};

use super::sections::{cut, date, table};
use super::{MemoryChart, Table};

/// A chart is written for two widths, because text in a scaled picture would not be readable on a phone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Wide,
    Phone,
}

/// Points of a curve that are drawn; more would not be seen.
const POINTS_MAX: usize = 600;
const KILLS_MAX: usize = 60;
const FAILURES_MAX: usize = 60;
const INSTANCES_MAX: usize = 20;
/// Points of a curve in its table.
const TABLE_POINTS: usize = 12;

/// The area of a chart in which values are drawn.
struct Plot {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    from: Timestamp,
    seconds: f64,
    max: f64,
}

impl Plot {
    fn new(chart: &MemoryChart, width: Width) -> Option<Plot> {
        let points = || chart.instances.iter().flatten();
        let times = points().map(|point| point.0).chain(chart.kills.iter().map(|kill| kill.0));
        let (from, until) = (times.clone().min()?, times.max()?);
        let max = points().map(|point| point.1).chain(chart.limit_bytes).max().unwrap_or(0);
        let (width, height, left) = match width {
            Width::Wide => (960.0, 280.0, 76.0),
            Width::Phone => (360.0, 220.0, 62.0),
        };
        let seconds = until.duration_since(from).as_secs_f64().max(1.0);
        let max = max.max(1) as f64 * 1.12;
        Some(Plot { width, height, left, right: 14.0, top: 22.0, bottom: 30.0, from, seconds, max })
    }

    /// The place of a time between the first and the last one.
    fn share(&self, time: Timestamp) -> f64 {
        time.duration_since(self.from).as_secs_f64() / self.seconds
    }

    fn has(&self, (from, until): &(Timestamp, Timestamp)) -> bool {
        self.share(*until) >= 0.0 && self.share(*from) <= 1.0
    }

    fn x(&self, time: Timestamp) -> f64 {
        self.left + self.share(time).clamp(0.0, 1.0) * (self.width - self.left - self.right)
    }

    fn y(&self, bytes: u64) -> f64 {
        self.floor() - bytes as f64 / self.max * (self.floor() - self.top)
    }

    fn floor(&self) -> f64 {
        self.height - self.bottom
    }
}

/// The memory curve with its limit, the kills and the failed lookups.
pub fn memory(chart: &MemoryChart, at: usize, width: Width) -> Markup {
    let Some(plot) = Plot::new(chart, width) else { return html! {} };
    let class = if width == Width::Wide { "desk" } else { "phone" };
    let (title, text) = (format!("memory-{at}-{class}-title"), format!("memory-{at}-{class}-text"));
    html! {
        svg.chart.(class) role="img" viewBox={ "0 0 " (plot.width) " " (plot.height) } aria-labelledby={ (title) " " (text) } {
            title #(title) { "Memory of " (cut(&chart.container, 200)) }
            desc #(text) { (describe(chart)) }
            (bytes_axis(&plot))
            (time_axis(&plot, if width == Width::Wide { 6 } else { 3 }))
            @for &(from, until) in chart.failures.iter().filter(|span| plot.has(span)).take(FAILURES_MAX) {
                @let start = plot.x(from);
                rect.failure x=(px(start)) y=(px(plot.top)) width=(px((plot.x(until) - start).max(3.0))) height=(px(plot.floor() - plot.top)) {}
            }
            @for points in chart.instances.iter().rev().take(INSTANCES_MAX) { (curve(&plot, points)) }
            @if let Some(limit) = chart.limit_bytes { (limit_line(&plot, limit)) }
            @for (time, _) in chart.kills.iter().take(KILLS_MAX) { (kill_mark(&plot, *time)) }
        }
    }
}

fn describe(chart: &MemoryChart) -> String {
    let points = || chart.instances.iter().flatten();
    let highest = points().map(|point| point.1).max();
    let mut text = highest.map_or_else(String::new, |bytes| format!("Highest sample {}. ", size(bytes)));
    text += &chart.limit_bytes.map_or("No limit. ".to_owned(), |limit| format!("Limit {}. ", size(limit)));
    if let Some((first, last)) = points().map(|point| point.0).min().zip(points().map(|point| point.0).max())
    {
        text += &format!("From {} to {}. ", date(first), date(last));
    }
    text += &format!("{} kills, {} spans of failed lookups.", chart.kills.len(), chart.failures.len());
    text
}

fn bytes_axis(plot: &Plot) -> Markup {
    let step = nice_step(plot.max / 4.0);
    let ticks = (0..=8u32).map(|n| f64::from(n) * step).take_while(|bytes| *bytes <= plot.max);
    html! {
        @for bytes in ticks {
            @let y = plot.y(bytes as u64);
            line.grid x1=(px(plot.left)) y1=(px(y)) x2=(px(plot.width - plot.right)) y2=(px(y)) {}
            text.axis x=(px(plot.left - 8.0)) y=(px(y + 4.0)) text-anchor="end" { (size(bytes as u64)) }
        }
    }
}

/// A power of two, or one and a half of one, below or at `step`.
fn nice_step(step: f64) -> f64 {
    let power = 2f64.powf(step.max(1.0).log2().ceil());
    if power * 0.75 >= step { power * 0.75 } else { power }
}

fn time_axis(plot: &Plot, ticks: u32) -> Markup {
    let format = if plot.seconds > 86_400.0 { "%m-%d %H:%M" } else { "%H:%M:%S" };
    let time = |n: u32| {
        let seconds = plot.seconds * f64::from(n) / f64::from(ticks);
        plot.from.saturating_add(SignedDuration::from_millis((seconds * 1000.0) as i64)).unwrap_or(plot.from)
    };
    let anchor = |n: u32| match n {
        0 => "start",
        n if n == ticks => "end",
        _ => "middle",
    };
    html! {
        line.axis-line x1=(px(plot.left)) y1=(px(plot.floor())) x2=(px(plot.width - plot.right)) y2=(px(plot.floor())) {}
        @for n in 0..=ticks {
            text.axis x=(px(plot.x(time(n)))) y=(px(plot.height - 10.0)) text-anchor=(anchor(n)) { (time(n).strftime(format)) }
        }
    }
}

fn curve(plot: &Plot, points: &[(Timestamp, u64)]) -> Markup {
    let points = thin(points, POINTS_MAX);
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return html! {} };
    let line: Vec<String> =
        points.iter().map(|&(time, bytes)| format!("{},{}", px(plot.x(time)), px(plot.y(bytes)))).collect();
    let line = line.join(" ");
    let floor = px(plot.floor());
    html! {
        polygon.area points={ (px(plot.x(first.0))) "," (floor) " " (line) " " (px(plot.x(last.0))) "," (floor) } {}
        polyline.curve points=(line) {}
    }
}

fn limit_line(plot: &Plot, limit: u64) -> Markup {
    let y = plot.y(limit);
    html! {
        line.limit x1=(px(plot.left)) y1=(px(y)) x2=(px(plot.width - plot.right)) y2=(px(y)) {}
        text.limit-label x=(px(plot.left + 6.0)) y=(px(y - 6.0)) { "limit " (size(limit)) }
    }
}

fn kill_mark(plot: &Plot, time: Timestamp) -> Markup {
    let x = plot.x(time);
    let (top, arm) = (plot.top - 8.0, 5.0);
    html! {
        line.kill x1=(px(x)) y1=(px(top)) x2=(px(x)) y2=(px(plot.floor())) {}
        path.kill-mark d={ "M" (px(x - arm)) " " (px(top - arm)) "L" (px(x + arm)) " " (px(top + arm)) "M" (px(x + arm)) " " (px(top - arm)) "L" (px(x - arm)) " " (px(top + arm)) } {}
    }
}

/// At most `max` points: of those that share a place, the highest.
fn thin(points: &[(Timestamp, u64)], max: usize) -> Vec<(Timestamp, u64)> {
    if points.len() <= max {
        return points.to_vec();
    }
    let highest = |chunk: &[(Timestamp, u64)]| chunk.iter().copied().max_by_key(|point| point.1);
    points.chunks(points.len().div_ceil(max)).filter_map(highest).collect()
}

/// Times and values of the chart, without its detail.
pub fn as_table(chart: &MemoryChart) -> Table {
    let mut rows: Vec<(Timestamp, String, String)> = Vec::new();
    for points in chart.instances.iter().rev().take(INSTANCES_MAX) {
        let thinned = thin(points, TABLE_POINTS);
        rows.extend(thinned.into_iter().map(|(time, bytes)| (time, size(bytes), String::new())));
    }
    let kills = chart.kills.iter().take(KILLS_MAX);
    rows.extend(kills.map(|(time, text)| (*time, String::new(), format!("kill: {}", cut(text, 200)))));
    rows.sort();
    Table {
        caption: format!("Memory of {}: {}", cut(&chart.container, 200), describe(chart)),
        header: ["Time", "Memory", "Event"].map(str::to_owned).into(),
        rows: rows.into_iter().map(|(time, bytes, event)| vec![date(time), bytes, event]).collect(),
    }
}

/// The number of latencies in each power of ten, and a table of it.
pub fn histogram(latencies: &[u64]) -> Markup {
    const BOUNDS: [(u64, &str); 7] = [
        (1_000_000, "< 1 ms"),
        (10_000_000, "1–10 ms"),
        (100_000_000, "10–100 ms"),
        (1_000_000_000, "0.1–1 s"),
        (2_500_000_000, "1–2.5 s"),
        (5_000_000_000, "2.5–5 s"),
        (u64::MAX, "≥ 5 s"),
    ];
    let mut counts = [0u64; BOUNDS.len()];
    for latency in latencies {
        let at = BOUNDS.iter().position(|(bound, _)| latency < bound).unwrap_or(BOUNDS.len() - 1);
        counts[at] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let rows =
        BOUNDS.iter().zip(&counts).map(|((_, label), count)| vec![(*label).to_owned(), count.to_string()]);
    let text: Vec<String> =
        BOUNDS.iter().zip(&counts).map(|((_, label), count)| format!("{label}: {count}")).collect();
    html! {
        svg.chart.histogram role="img" viewBox="0 0 360 200" aria-label={ "Latencies. " (text.join("; ")) } {
            @for (at, ((_, label), count)) in BOUNDS.iter().zip(&counts).enumerate() {
                @let y = 8.0 + 27.0 * at as f64;
                text.axis x="74" y=(px(y + 14.0)) text-anchor="end" { (label) }
                rect.bar x="82" y=(px(y)) width=(px(*count as f64 / most as f64 * 220.0)) height="19" rx="2" {}
                text.axis x=(px(88.0 + *count as f64 / most as f64 * 220.0)) y=(px(y + 14.0)) { (count) }
            }
        }
        details { summary { "The same as a table" }
            (table(&Table { caption: "Queries by latency".to_owned(), header: vec!["Latency".to_owned(), "Queries".to_owned()], rows: rows.collect() }))
        }
    }
}

/// A coordinate: a tenth of a pixel is enough.
fn px(value: f64) -> String {
    format!("{value:.1}")
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(6);
    let value = bytes as f64 / 2f64.powi(10 * power as i32);
    let decimals = usize::from(value < 100.0 && value.fract() >= 0.05);
    format!("{value:.decimals$} {}", UNITS[power as usize - 1])
}

pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(samples: u64) -> MemoryChart {
        let point = |at: u64| (Timestamp::from_second(1_800_000_000 + at as i64).unwrap(), at << 20);
        MemoryChart {
            container: "shop/cart/app".into(),
            instances: vec![(0..samples).map(point).collect()],
            limit_bytes: Some(64 << 20),
            kills: vec![(point(64).0, "3f2a-7".into())],
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_chart_has_its_curve_limit_and_kills_inside_the_picture() {
        let svg = memory(&chart(64), 0, Width::Wide).into_string();
        for part in
            ["class=\"curve\"", "limit 64 MiB", "class=\"kill\"", "Highest sample 63 MiB. Limit 64 MiB."]
        {
            assert!(svg.contains(part), "{part}\n{svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn failed_lookups_outside_of_the_curve_are_not_drawn() {
        let mut chart = chart(64);
        let end = chart.kills[0].0;
        let span = |from: i64, until: i64| {
            (end + SignedDuration::from_secs(from), end + SignedDuration::from_secs(until))
        };
        chart.failures = vec![span(-10, -5), span(-500, -400), span(100, 200)];
        assert_eq!(memory(&chart, 0, Width::Wide).into_string().matches("class=\"failure\"").count(), 1);
    }

    #[test]
    fn one_point_or_a_value_without_bound_is_drawn_too() {
        let mut one = chart(1);
        one.instances[0][0].1 = u64::MAX;
        let svg = memory(&one, 0, Width::Phone).into_string();
        assert!(svg.contains("polyline") && !svg.contains("NaN") && !svg.contains("-inf"), "{svg}");
        assert!(memory(&MemoryChart::default(), 0, Width::Wide).into_string().is_empty());
    }

    #[test]
    fn the_highest_sample_survives_thinning() {
        let mut points = chart(100_000).instances.remove(0);
        points[777].1 = u64::MAX;
        let thinned = thin(&points, POINTS_MAX);
        assert!(thinned.len() <= POINTS_MAX && thinned.iter().any(|point| point.1 == u64::MAX));
    }

    #[test]
    fn sizes_are_rounded() {
        assert_eq!(
            [0, 1023, 1 << 20, 3 << 19, 64 << 20, u64::MAX].map(size),
            ["0 B", "1023 B", "1 MiB", "1.5 MiB", "64 MiB", "16 EiB"]
        );
    }

    #[test]
    fn each_latency_is_in_one_bar() {
        let text = histogram(&[5, 2_000_000, 1_500_000_000, 5_000_000_000, u64::MAX]).into_string();
        assert!(
            text.contains(
                "&lt; 1 ms: 1; 1–10 ms: 1; 10–100 ms: 0; 0.1–1 s: 0; 1–2.5 s: 1; 2.5–5 s: 0; ≥ 5 s: 2"
            ),
            "{text}"
        );
    }
}
