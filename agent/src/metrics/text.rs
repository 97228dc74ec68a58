//! Renders families as text: Prometheus' format 0.0.4, which every scraper reads, and OpenMetrics 1.0.0, which has
//! exemplars. No crate writes both formats.
//!
//! This module must not depend on what is counted.

use std::fmt::Write;

use podopsy_model::metric::{Exemplar, Histogram, MetricFamily, MetricKind, MetricSample, MetricValue};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>
    Prometheus,
    /// <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>
    OpenMetrics,
}

impl Format {
    /// Chooses the format by the client's `Accept` header: OpenMetrics only if the header names it.
    pub fn accepted(accept: Option<&str>) -> Format {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Renders the whole page. A family without samples still has its HELP and TYPE.
pub fn page(families: &[MetricFamily], format: Format) -> String {
    let mut out = String::new();
    for family in families {
        write_family(&mut out, family, format);
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn write_family(out: &mut String, family: &MetricFamily, format: Format) {
    let (kind, total) = match family.kind {
        MetricKind::Counter => ("counter", "_total"),
        MetricKind::Gauge => ("gauge", ""),
        MetricKind::Histogram => ("histogram", ""),
    };
    // Prometheus names a counter's family like its samples, OpenMetrics without the suffix.
    let suffix = if format == Format::Prometheus { total } else { "" };
    let name = family.name;
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name}{suffix} {}", escaped(family.help, false));
    let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
    for sample in &family.samples {
        match &sample.value {
            MetricValue::Histogram(histogram) => write_histogram(out, name, sample, histogram),
            MetricValue::Count(count) => write_sample(out, name, total, sample, &count.to_string(), format),
            MetricValue::Number(value) => write_sample(out, name, total, sample, &number(*value), format),
        }
    }
}

fn write_sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    sample: &MetricSample,
    value: &str,
    format: Format,
) {
    let _ = write!(out, "{name}{suffix}");
    write_labels(out, &sample.labels, None);
    let _ = write!(out, " {value}");
    if let (Format::OpenMetrics, Some(exemplar)) = (format, &sample.exemplar) {
        write_exemplar(out, exemplar);
    }
    out.push('\n');
}

fn write_exemplar(out: &mut String, exemplar: &Exemplar) {
    out.push_str(" # {");
    write_pairs(out, &exemplar.labels);
    let _ = write!(out, "}} {} {}", number(exemplar.value), exemplar.time);
}

fn write_histogram(out: &mut String, name: &str, sample: &MetricSample, histogram: &Histogram) {
    let mut below = 0;
    let infinity = [(f64::INFINITY, histogram.above)];
    for (bound, count) in histogram.buckets.iter().chain(&infinity) {
        below += count;
        let _ = write!(out, "{name}_bucket");
        write_labels(out, &sample.labels, Some(&number(*bound)));
        let _ = writeln!(out, " {below}");
    }
    // OpenMetrics has a count if and only if it has a sum.
    let Some(sum) = histogram.sum else { return };
    for (suffix, value) in [("_sum", number(sum)), ("_count", below.to_string())] {
        let _ = write!(out, "{name}{suffix}");
        write_labels(out, &sample.labels, None);
        let _ = writeln!(out, " {value}");
    }
}

fn write_labels(out: &mut String, labels: &[(&'static str, String)], bound: Option<&str>) {
    if labels.is_empty() && bound.is_none() {
        return;
    }
    out.push('{');
    write_pairs(out, labels);
    if let Some(bound) = bound {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}le=\"{bound}\"");
    }
    out.push('}');
}

fn write_pairs(out: &mut String, labels: &[(&'static str, String)]) {
    for (at, (name, value)) in labels.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{}\"", escaped(value, true));
    }
}

fn escaped(text: &str, quotes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quotes => escaped.push_str("\\\""),
            c => escaped.push(c),
        }
    }
    escaped
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        // OpenMetrics requires a bound to be written as a float.
        value if value == value.trunc() && value.abs() < 1e15 => format!("{value:.1}"),
        value => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<MetricFamily> {
        let mut kills = MetricFamily::counter("podopsy_oom_kills", "Processes killed.\nAll of \\them.");
        kills.count(vec![("pod", "a\"b\\c\nd".to_owned())], 3);
        kills.samples[0].exemplar = Some(Exemplar {
            labels: vec![("incident_id", "aaac-33051".to_owned())],
            value: 1.0,
            time: 1_700_000_000.25,
        });
        let mut latency = MetricFamily::new("podopsy_wait_seconds", "Waits.", MetricKind::Histogram);
        let histogram = Histogram { buckets: vec![(0.5, 2), (1.0, 1)], above: 4, sum: Some(12.25) };
        latency.samples.push(MetricSample {
            labels: vec![("pod", "p".to_owned())],
            value: MetricValue::Histogram(histogram),
            exemplar: None,
        });
        vec![kills, latency, MetricFamily::gauge("podopsy_up", "Up.").single(1.0)]
    }

    #[test]
    fn prometheus_counters_have_their_suffix_and_no_exemplars() {
        assert_eq!(
            page(&families(), Format::Prometheus),
            "# HELP podopsy_oom_kills_total Processes killed.\\nAll of \\\\them.\n\
             # TYPE podopsy_oom_kills_total counter\n\
             podopsy_oom_kills_total{pod=\"a\\\"b\\\\c\\nd\"} 3\n\
             # HELP podopsy_wait_seconds Waits.\n\
             # TYPE podopsy_wait_seconds histogram\n\
             podopsy_wait_seconds_bucket{pod=\"p\",le=\"0.5\"} 2\n\
             podopsy_wait_seconds_bucket{pod=\"p\",le=\"1.0\"} 3\n\
             podopsy_wait_seconds_bucket{pod=\"p\",le=\"+Inf\"} 7\n\
             podopsy_wait_seconds_sum{pod=\"p\"} 12.25\n\
             podopsy_wait_seconds_count{pod=\"p\"} 7\n\
             # HELP podopsy_up Up.\n\
             # TYPE podopsy_up gauge\n\
             podopsy_up 1.0\n"
        );
    }

    #[test]
    fn openmetrics_has_exemplars_and_an_end_marker() {
        let page = page(&families(), Format::OpenMetrics);
        assert!(page.starts_with("# HELP podopsy_oom_kills Processes killed.\\nAll of \\\\them.\n# TYPE podopsy_oom_kills counter\n"));
        assert!(page.contains(
            "podopsy_oom_kills_total{pod=\"a\\\"b\\\\c\\nd\"} 3 # {incident_id=\"aaac-33051\"} 1.0 1700000000.25\n"
        ));
        assert!(page.ends_with("podopsy_up 1.0\n# EOF\n"));
    }

    #[test]
    fn the_accept_header_chooses_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::accepted(None), Format::Prometheus);
    }
}
