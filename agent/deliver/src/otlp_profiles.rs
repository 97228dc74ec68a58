//! Sends profiles of containers by OTLP over HTTP (`POST /v1development/profiles`) or gRPC (`ProfilesService`).
//!
//! The signal is in development: each release of opentelemetry-proto may change the messages, and a receiver must support
//! the release in [`VERSION`]. Values are numbers of samples, and the period is the CPU time of one sample, as in
//! OpenTelemetry's own eBPF profiler; receivers multiply. All profiles of a request share its tables, so profiles are
//! converted when a batch is sent. The queue holds pprof, which is a tenth of the size.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::Context;
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::profiles::v1development::{
    Line, Mapping, Profile, ResourceProfiles, Sample, ScopeProfiles, ValueType,
};
use pprof::protos;
use prost::Message;
use reqwest::StatusCode;

use super::DestinationFormat;
use super::otlp::{is_retryable, resource, scope, string_array};
use super::otlp_dictionary::Dictionary;
use super::queue::QueueItem;
use podopsy_model::Owner;

/// The release of opentelemetry-proto that defines the messages: the one in the crate's submodule.
pub const VERSION: &str = "1.10.0";

/// The bound for one unpacked pprof; the agent's own profiles are far below it.
const MAX_UNPACKED_BYTES: u64 = 256 << 20;

#[derive(Debug, Default)]
pub struct OtlpProfiles;

/// A profile of one container (or of all host processes) over some time.
#[derive(Debug)]
pub struct OtlpProfile {
    /// Stays the same when the profile is sent again.
    id: [u8; 16],
    node: String,
    owner: Owner,
    /// Compressed pprof, as podopsy-profiles writes it.
    pprof: Vec<u8>,
}

impl OtlpProfile {
    pub fn new(node: &str, owner: &Owner, pprof: Vec<u8>) -> OtlpProfile {
        // In OTLP, an id of zeroes means no id.
        let id = fastrand::u128(1..).to_be_bytes();
        OtlpProfile { id, node: node.to_owned(), owner: owner.clone(), pprof }
    }
}

impl QueueItem for OtlpProfile {
    fn bytes(&self) -> usize {
        let labels = self.owner.pod.iter().flat_map(|pod| &pod.labels);
        let labels: usize = labels.map(|(key, value)| key.len() + value.len() + 100).sum();
        size_of::<OtlpProfile>() + self.pprof.len() + labels + 600
    }
}

impl DestinationFormat for OtlpProfiles {
    type Item = OtlpProfile;

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    fn encode(&self, batch: &[OtlpProfile]) -> anyhow::Result<Vec<u8>> {
        let mut dictionary = Dictionary::new();
        let mut resources: BTreeMap<(&str, &str, &str), ResourceProfiles> = BTreeMap::new();
        for item in batch {
            let (pod, container) = (item.owner.pod.as_ref(), item.owner.container.as_ref());
            let key = (
                item.node.as_str(),
                pod.map_or("", |pod| &pod.uid),
                container.map_or("", |container| &container.id),
            );
            let profiles = resources.entry(key).or_insert_with(|| ResourceProfiles {
                resource: Some(resource(&item.node, pod, container)),
                scope_profiles: vec![ScopeProfiles { scope: Some(scope()), ..ScopeProfiles::default() }],
                schema_url: String::new(),
            });
            let profile = convert(item, &mut dictionary)?;
            if let Some(scope) = profiles.scope_profiles.first_mut() {
                scope.profiles.push(profile);
            }
        }
        let resource_profiles = resources.into_values().collect();
        let request =
            ExportProfilesServiceRequest { resource_profiles, dictionary: Some(dictionary.finish()) };
        Ok(request.encode_to_vec())
    }

    fn rejected(&self, answer: &[u8]) -> u64 {
        let answer = ExportProfilesServiceResponse::decode(answer).ok();
        let partial = answer.and_then(|answer| answer.partial_success);
        partial.and_then(|partial| u64::try_from(partial.rejected_profiles).ok()).unwrap_or(0)
    }

    fn is_retryable(&self, status: StatusCode) -> bool {
        is_retryable(status)
    }
}

fn convert(item: &OtlpProfile, dictionary: &mut Dictionary) -> anyhow::Result<Profile> {
    let mut bytes = Vec::new();
    let mut unpacked = flate2::read::GzDecoder::new(item.pprof.as_slice()).take(MAX_UNPACKED_BYTES);
    unpacked.read_to_end(&mut bytes).context("unpack a pprof for OTLP")?;
    // The pprof crate re-exports its own version of prost.
    let pprof = <protos::Profile as protos::Message>::decode(bytes.as_slice());
    let pprof = pprof.context("decode a pprof for OTLP")?;
    drop(bytes);
    let converter = PprofConverter::new(&pprof, dictionary);
    Ok(converter.profile(item.id, dictionary))
}

/// One pprof, with the indices of its locations in the request's tables.
struct PprofConverter<'a> {
    pprof: &'a protos::Profile,
    /// By the pprof's location ids.
    locations: BTreeMap<u64, i32>,
}

impl<'a> PprofConverter<'a> {
    fn new(pprof: &'a protos::Profile, dictionary: &mut Dictionary) -> PprofConverter<'a> {
        let mut converter = PprofConverter { pprof, locations: BTreeMap::new() };
        let functions: BTreeMap<u64, i32> = pprof
            .function
            .iter()
            .map(|function| (function.id, converter.function(function, dictionary)))
            .collect();
        let mappings: BTreeMap<u64, (i32, Option<i32>)> = pprof
            .mapping
            .iter()
            .map(|mapping| (mapping.id, converter.mapping(mapping, dictionary)))
            .collect();
        for location in &pprof.location {
            let (mapping, kind) = mappings.get(&location.mapping_id).copied().unwrap_or_default();
            let line = |line: &protos::Line| Line {
                function_index: functions.get(&line.function_id).copied().unwrap_or(0),
                line: line.line,
                column: 0,
            };
            let lines = location.line.iter().map(line).collect();
            converter
                .locations
                .insert(location.id, dictionary.location(mapping, location.address, lines, kind));
        }
        converter
    }

    fn string(&self, id: i64) -> &'a str {
        usize::try_from(id).ok().and_then(|id| self.pprof.string_table.get(id)).map_or("", String::as_str)
    }

    fn function(&self, function: &protos::Function, dictionary: &mut Dictionary) -> i32 {
        let [name, system_name, file] =
            [function.name, function.system_name, function.filename].map(|id| self.string(id));
        dictionary.function(name, system_name, file)
    }

    /// The index of a mapping, and the index of the attribute with the kind of its frames.
    fn mapping(&self, mapping: &protos::Mapping, dictionary: &mut Dictionary) -> (i32, Option<i32>) {
        let (name, build_id) = (self.string(mapping.filename), self.string(mapping.build_id));
        let build_id_attribute = (!build_id.is_empty()).then(|| {
            let value = Value::StringValue(build_id.to_owned());
            dictionary.attribute("process.executable.build_id.gnu", value)
        });
        let filename_strindex = dictionary.string(name);
        let index = dictionary.mapping(Mapping {
            memory_start: mapping.memory_start,
            memory_limit: mapping.memory_limit,
            file_offset: mapping.file_offset,
            filename_strindex,
            attribute_indices: build_id_attribute.into_iter().collect(),
        });
        let kind = match name {
            "[kernel]" => Some("kernel"),
            "[python]" => Some("cpython"),
            // Code that was generated at run time can be of any kind.
            "[anonymous]" | "" => None,
            _ => Some("native"),
        };
        (
            index,
            kind.map(|kind| dictionary.attribute("profile.frame.type", Value::StringValue(kind.to_owned()))),
        )
    }

    fn profile(&self, id: [u8; 16], dictionary: &mut Dictionary) -> Profile {
        let pprof = self.pprof;
        let ty = |ty: Option<&protos::ValueType>, dictionary: &mut Dictionary| {
            let (ty, unit) = ty.map_or(("", ""), |ty| (self.string(ty.ty), self.string(ty.unit)));
            Some(ValueType { type_strindex: dictionary.string(ty), unit_strindex: dictionary.string(unit) })
        };
        // OTLP wants one sample for each stack and set of attributes.
        let mut samples: BTreeMap<(i32, Vec<i32>), i64> = BTreeMap::new();
        for sample in &pprof.sample {
            let locations = sample.location_id.iter().filter_map(|id| self.locations.get(id).copied());
            let stack = dictionary.stack(locations.collect());
            let count = samples.entry((stack, self.attributes(sample, dictionary))).or_default();
            *count = count.saturating_add(sample.value.first().copied().unwrap_or(0));
        }
        let samples = samples.into_iter().map(|((stack_index, attribute_indices), count)| Sample {
            stack_index,
            attribute_indices,
            values: vec![count],
            ..Sample::default()
        });
        let comments: Vec<_> = pprof.comment.iter().map(|&id| self.string(id)).collect();
        let comment = dictionary.attribute("pprof.profile.comment", string_array(comments));
        Profile {
            sample_type: ty(pprof.sample_type.first(), dictionary),
            samples: samples.collect(),
            time_unix_nano: u64::try_from(pprof.time_nanos).unwrap_or(0),
            duration_nano: u64::try_from(pprof.duration_nanos).unwrap_or(0),
            period_type: ty(pprof.period_type.as_ref(), dictionary),
            period: pprof.period,
            profile_id: id.to_vec(),
            attribute_indices: vec![comment],
            ..Profile::default()
        }
    }

    /// The attributes of the sample's process and thread. Pod, container and node are attributes of the resource.
    fn attributes(&self, sample: &protos::Sample, dictionary: &mut Dictionary) -> Vec<i32> {
        let attributes = sample.label.iter().filter_map(|label| {
            let (key, value) = match self.string(label.key) {
                "pid" => ("process.pid", Value::IntValue(label.num)),
                "tid" => ("thread.id", Value::IntValue(label.num)),
                // As in logs: a process can set its comm to anything.
                "comm" => ("process.title", Value::StringValue(self.string(label.str).to_owned())),
                "thread" => ("thread.name", Value::StringValue(self.string(label.str).to_owned())),
                _ => return None,
            };
            Some(dictionary.attribute(key, value))
        });
        let mut indices: Vec<_> = attributes.collect();
        indices.sort_unstable();
        indices
    }
}

#[cfg(test)]
#[path = "otlp_profiles_tests.rs"]
mod tests;
