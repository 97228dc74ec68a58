//! Sends the metric families of `/metrics` as OTLP metrics by HTTP (`POST /v1/metrics`) or gRPC (`MetricsService`).
//!
//! Names are those of Prometheus without `_total`: a converter from OTLP to Prometheus adds it, so a family has one name on
//! both ways (`tests/kernel/metrics.rs` checks this with VictoriaMetrics). Labels that name a container become attributes
//! of the semantic conventions, so Prometheus shows `k8s_pod_name` where a scrape has `pod`. This module must not depend on
//! what is counted.

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, exemplar,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use reqwest::StatusCode;

use super::DestinationFormat;
use super::otlp::{is_retryable, scope, string_attribute};
use super::queue::QueueItem;
use podopsy_model::metric::{self, Labels, MetricFamily, MetricKind, MetricSample, MetricValue};

#[derive(Debug, Default)]
pub struct OtlpMetrics;

/// All families at one time, already encoded, which takes a fifth of the memory.
#[derive(Debug)]
pub struct MetricsSnapshot(Vec<u8>);

impl MetricsSnapshot {
    /// Counters count since `start`.
    pub fn new(node: &str, families: &[MetricFamily], start: Timestamp, now: Timestamp) -> MetricsSnapshot {
        let times = (nanoseconds(start), nanoseconds(now));
        let metrics = families.iter().filter(|family| !family.samples.is_empty());
        let metrics = metrics.map(|family| metric(family, times)).collect();
        let attributes = vec![
            string_attribute("service.name", "podopsy"),
            string_attribute("service.instance.id", node),
            string_attribute("k8s.node.name", node),
        ];
        let metrics = ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }],
            schema_url: String::new(),
        };
        MetricsSnapshot(ExportMetricsServiceRequest { resource_metrics: vec![metrics] }.encode_to_vec())
    }
}

impl QueueItem for MetricsSnapshot {
    fn bytes(&self) -> usize {
        self.0.len() + size_of::<MetricsSnapshot>()
    }
}

impl DestinationFormat for OtlpMetrics {
    type Item = MetricsSnapshot;

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    /// Concatenated protobuf messages decode as one message with the repeated fields of all of them.
    fn encode(&self, batch: &[MetricsSnapshot]) -> anyhow::Result<Vec<u8>> {
        Ok(batch.iter().flat_map(|snapshot| &snapshot.0).copied().collect())
    }

    /// A receiver rejects points, not snapshots. If it rejected any, one snapshot is counted.
    fn rejected(&self, answer: &[u8]) -> u64 {
        let answer = ExportMetricsServiceResponse::decode(answer).ok();
        let partial = answer.and_then(|answer| answer.partial_success);
        u64::from(partial.is_some_and(|partial| partial.rejected_data_points > 0))
    }

    fn is_retryable(&self, status: StatusCode) -> bool {
        is_retryable(status)
    }
}

/// Start and end of the counted time, in nanoseconds since the epoch.
type Times = (u64, u64);

fn metric(family: &MetricFamily, times: Times) -> Metric {
    let temporality = AggregationTemporality::Cumulative.into();
    let points = || family.samples.iter().filter_map(|sample| point(sample, times)).collect();
    let data = match family.kind {
        MetricKind::Counter => {
            Data::Sum(Sum { data_points: points(), aggregation_temporality: temporality, is_monotonic: true })
        }
        MetricKind::Gauge => Data::Gauge(Gauge { data_points: points() }),
        MetricKind::Histogram => {
            let points = family.samples.iter().filter_map(|sample| histogram(sample, times));
            Data::Histogram(Histogram { data_points: points.collect(), aggregation_temporality: temporality })
        }
    };
    let unit = match family.name {
        name if name.ends_with("_bytes_per_second") => "By/s",
        name if name.ends_with("_seconds") => "s",
        name if name.ends_with("_bytes") => "By",
        _ => "",
    };
    Metric {
        name: family.name.to_owned(),
        description: family.help.to_owned(),
        unit: unit.to_owned(),
        metadata: Vec::new(),
        data: Some(data),
    }
}

fn point(sample: &MetricSample, (start, now): Times) -> Option<NumberDataPoint> {
    let value = match &sample.value {
        // OTLP's integers are signed.
        MetricValue::Count(count) => Number::AsInt(i64::try_from(*count).unwrap_or(i64::MAX)),
        MetricValue::Number(number) => Number::AsDouble(*number),
        MetricValue::Histogram(_) => return None,
    };
    Some(NumberDataPoint {
        attributes: attributes(&sample.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        exemplars: sample.exemplar.iter().map(exemplar).collect(),
        flags: 0,
        value: Some(value),
    })
}

fn histogram(sample: &MetricSample, (start, now): Times) -> Option<HistogramDataPoint> {
    let MetricValue::Histogram(histogram) = &sample.value else { return None };
    let counts = histogram.buckets.iter().map(|(_, count)| *count).chain([histogram.above]);
    let counts: Vec<u64> = counts.collect();
    Some(HistogramDataPoint {
        attributes: attributes(&sample.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: counts.iter().sum(),
        sum: histogram.sum,
        bucket_counts: counts,
        explicit_bounds: histogram.buckets.iter().map(|(bound, _)| *bound).collect(),
        ..HistogramDataPoint::default()
    })
}

fn exemplar(exemplar: &metric::Exemplar) -> Exemplar {
    Exemplar {
        filtered_attributes: attributes(&exemplar.labels),
        // The 53 bits of a float are enough for microseconds in this century.
        time_unix_nano: (exemplar.time * 1e6) as u64 * 1000,
        value: Some(exemplar::Value::AsDouble(exemplar.value)),
        ..Exemplar::default()
    }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let name = |label: &'static str| match label {
        "namespace" => "k8s.namespace.name",
        "pod" => "k8s.pod.name",
        "container" => "k8s.container.name",
        "incident_id" => "podopsy.incident.id",
        other => other,
    };
    labels.iter().map(|(label, value)| string_attribute(name(label), value)).collect()
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsPartialSuccess;

    use super::*;

    fn families() -> Vec<MetricFamily> {
        let labels = || vec![("namespace", "shop".to_owned()), ("container", "api".to_owned())];
        let mut kills = MetricFamily::counter("podopsy_oom_kills", "Kills.");
        kills.count(labels(), 3);
        kills.samples[0].exemplar = Some(metric::Exemplar {
            labels: vec![("incident_id", "aaac-7".to_owned())],
            value: 1.0,
            time: 1_700_000_000.25,
        });
        let mut latency = MetricFamily::new("podopsy_dns_latency_seconds", "Waits.", MetricKind::Histogram);
        let value = metric::Histogram { buckets: vec![(0.5, 2), (1.0, 1)], above: 4, sum: None };
        latency.samples.push(MetricSample {
            labels: labels(),
            value: MetricValue::Histogram(value),
            exemplar: None,
        });
        let rss = MetricFamily::gauge("process_resident_memory_bytes", "Memory.").single(4096.5);
        vec![kills, MetricFamily::counter("podopsy_sigkills", "None yet."), latency, rss]
    }

    #[test]
    fn families_become_metrics_and_snapshots_become_one_request() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let snapshots = [60, 120].map(|second| MetricsSnapshot::new("n1", &families(), at(1), at(second)));
        let body = OtlpMetrics.encode(&snapshots).unwrap();
        let request = ExportMetricsServiceRequest::decode(body.as_slice()).unwrap();
        assert_eq!(request.resource_metrics.len(), 2);
        let resource = request.resource_metrics[0].resource.clone().unwrap().attributes;
        assert!(resource.contains(&string_attribute("k8s.node.name", "n1")), "{resource:?}");
        let of = |snapshot: usize| request.resource_metrics[snapshot].scope_metrics[0].metrics.clone();
        let names: Vec<_> = of(0).iter().map(|metric| (metric.name.clone(), metric.unit.clone())).collect();
        let wanted = [
            ("podopsy_oom_kills", ""),
            ("podopsy_dns_latency_seconds", "s"),
            ("process_resident_memory_bytes", "By"),
        ];
        assert_eq!(
            names,
            wanted.map(|(name, unit)| (name.to_owned(), unit.to_owned())),
            "a family without samples is left out"
        );

        let Some(Data::Sum(kills)) = of(1)[0].data.clone() else { panic!("{:?}", of(1)[0]) };
        assert!(kills.is_monotonic);
        assert_eq!(kills.aggregation_temporality(), AggregationTemporality::Cumulative);
        let point = &kills.data_points[0];
        assert_eq!(point.value, Some(Number::AsInt(3)));
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1_000_000_000, 120_000_000_000));
        assert_eq!(
            point.attributes,
            [string_attribute("k8s.namespace.name", "shop"), string_attribute("k8s.container.name", "api")]
        );
        assert_eq!(
            point.exemplars[0].filtered_attributes,
            [string_attribute("podopsy.incident.id", "aaac-7")]
        );
        assert_eq!(point.exemplars[0].time_unix_nano, 1_700_000_000_250_000_000);
        let Some(Data::Histogram(latency)) = of(0)[1].data.clone() else { panic!("{:?}", of(0)[1]) };
        let point = &latency.data_points[0];
        assert_eq!((point.count, point.sum), (7, None));
        assert_eq!(
            (point.bucket_counts.as_slice(), point.explicit_bounds.as_slice()),
            ([2, 1, 4].as_slice(), [0.5, 1.0].as_slice())
        );
        let Some(Data::Gauge(rss)) = of(0)[2].data.clone() else { panic!("{:?}", of(0)[2]) };
        assert_eq!(rss.data_points[0].value, Some(Number::AsDouble(4096.5)));
    }

    #[test]
    fn a_snapshot_that_was_rejected_in_part_is_counted_once() {
        let answer = |rejected| {
            let partial =
                ExportMetricsPartialSuccess { rejected_data_points: rejected, error_message: "".into() };
            ExportMetricsServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        };
        assert_eq!(
            (OtlpMetrics.rejected(&answer(12)), OtlpMetrics.rejected(&answer(0)), OtlpMetrics.rejected(b"")),
            (1, 0, 0)
        );
    }
}
