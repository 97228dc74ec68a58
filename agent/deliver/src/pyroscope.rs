//! Sends profiles to Grafana Pyroscope's push API (`POST /push.v1.PusherService/Push`, Connect with protobuf): unchanged
//! pprof, with labels.
//!
//! Why not `/ingest`: Pyroscope's reference calls the push API public and stable, and Alloy's `pyroscope.receive_http`
//! accepts it, too; `/ingest` takes one profile per request, with its labels in a query string. The message types are
//! written manually, because there are few of them and building must not need `protoc`.

use std::collections::BTreeMap;

use prost::Message;

use super::DestinationFormat;
use super::queue::QueueItem;
use podopsy_model::Owner;

#[derive(Debug, Default)]
pub struct Pyroscope;

/// A profile of one container (or of all host processes) over some time.
#[derive(Debug)]
pub struct PyroscopeProfile {
    /// Stays the same when the profile is sent again.
    id: String,
    labels: BTreeMap<&'static str, String>,
    /// Compressed pprof, as podopsy-profiles writes it. Pyroscope takes the time and the duration from it.
    bytes: Vec<u8>,
}

impl PyroscopeProfile {
    /// A profile of on-CPU time.
    pub fn cpu(node: &str, owner: &Owner, bytes: Vec<u8>) -> PyroscopeProfile {
        let pod = owner.pod.as_ref();
        let container = owner.container.as_ref();
        // The same name that Alloy builds from Kubernetes, so that a container is one service for all profilers.
        let service = match (pod, container) {
            (Some(pod), Some(container)) => format!("{}/{}", pod.namespace, container.name),
            (Some(pod), None) => format!("{}/{}", pod.namespace, pod.name),
            (None, _) => "host".to_owned(),
        };
        let mut labels = BTreeMap::from([
            ("__name__", "process_cpu".to_owned()),
            ("service_name", service),
            ("node", node.to_owned()),
        ]);
        labels.extend(
            pod.into_iter().flat_map(|pod| [("namespace", pod.namespace.clone()), ("pod", pod.name.clone())]),
        );
        labels.extend(container.map(|container| ("container", container.name.clone())));
        // Pyroscope treats an empty value as no label.
        labels.retain(|_, value| !value.is_empty());
        PyroscopeProfile { id: uuid(fastrand::u128(..)), labels, bytes }
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

impl QueueItem for PyroscopeProfile {
    fn bytes(&self) -> usize {
        size_of::<PyroscopeProfile>()
            + self.bytes.len()
            + self.labels.values().map(String::len).sum::<usize>()
            + 400
    }
}

/// `push/v1/push.proto`.
#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
    #[prost(string, tag = "2")]
    id: String,
}

impl DestinationFormat for Pyroscope {
    type Item = PyroscopeProfile;

    fn content_type(&self) -> &'static str {
        "application/proto"
    }

    fn encode(&self, batch: &[PyroscopeProfile]) -> anyhow::Result<Vec<u8>> {
        let mut series: BTreeMap<_, Vec<Sample>> = BTreeMap::new();
        for profile in batch {
            let sample = Sample { raw_profile: profile.bytes.clone(), id: profile.id.clone() };
            series.entry(&profile.labels).or_default().push(sample);
        }
        let label =
            |(name, value): (&&str, &String)| Label { name: (*name).to_owned(), value: value.clone() };
        let series = series
            .into_iter()
            .map(|(labels, samples)| Series { labels: labels.iter().map(label).collect(), samples });
        Ok(PushRequest { series: series.collect() }.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_model::owner::{ContainerRef, PodRef};
    use podopsy_profiles::import::wire::{Fields, WireValue};

    fn owner(name: &str) -> Owner {
        let pod = PodRef { namespace: "shop".into(), name: name.into(), uid: "u".into(), labels: [].into() };
        let container = ContainerRef { name: "api".into(), id: "c".into(), image: "i".into(), attempt: 0 };
        Owner { pod: Some(pod), container: Some(container), ..Owner::default() }
    }

    /// The messages in a field. Read by podopsy-profiles' own protobuf reader, which does not use prost.
    fn field(message: &[u8], number: u64) -> Vec<&[u8]> {
        let fields = Fields(message).map(|field| field.unwrap());
        fields.filter(|(at, _)| *at == number).map(|(_, value)| value.bytes().unwrap()).collect()
    }

    fn text(message: &[u8], number: u64) -> &str {
        std::str::from_utf8(field(message, number).first().copied().unwrap_or_default()).unwrap()
    }

    #[test]
    fn a_container_is_one_series_and_its_profiles_are_readable_pprof() {
        let profile = podopsy_profiles::export::example::profile();
        let mut pprof = Vec::new();
        podopsy_profiles::export::pprof::write(&profile, &mut pprof).unwrap();
        let batch =
            ["basket", "basket", "till"].map(|pod| PyroscopeProfile::cpu("n1", &owner(pod), pprof.clone()));
        let body = Pyroscope.encode(&batch).unwrap();
        assert_eq!(Fields(&body).count(), 2, "one series per container");
        let series = field(&body, 1);
        let labels: Vec<_> =
            field(series[0], 1).iter().map(|label| (text(label, 1), text(label, 2))).collect();
        assert_eq!(
            labels,
            [
                ("__name__", "process_cpu"),
                ("container", "api"),
                ("namespace", "shop"),
                ("node", "n1"),
                ("pod", "basket"),
                ("service_name", "shop/api"),
            ]
        );
        let samples = field(series[0], 2);
        assert_eq!((samples.len(), field(series[1], 2).len()), (2, 1));
        let ids: Vec<_> = samples.iter().map(|sample| text(sample, 2)).collect();
        assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() == 36), "{ids:?}");
        assert_eq!(batch[0].id, ids[0], "a profile that is sent again has the same id");
        let read = podopsy_profiles::import::pprof::read(field(samples[0], 1)[0], None).unwrap();
        assert_eq!(
            read.total(),
            podopsy_profiles::import::pprof::read(pprof.as_slice(), None).unwrap().total()
        );
        assert!(read.total() > 0);
        // Pyroscope files a profile under its own time: time_nanos is field 9.
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(field(samples[0], 1)[0]), &mut plain)
            .unwrap();
        let time = Fields(&plain).map(|field| field.unwrap()).find(|(at, _)| *at == 9).unwrap().1;
        assert_eq!(time, WireValue::Number(profile.start.as_nanosecond() as u64));
    }

    #[test]
    fn a_host_process_has_no_pod_label_and_an_id_is_a_uuid() {
        let host = PyroscopeProfile::cpu("n1", &Owner::default(), vec![1]);
        assert_eq!((host.labels["service_name"].as_str(), host.labels.len()), ("host", 3));
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
