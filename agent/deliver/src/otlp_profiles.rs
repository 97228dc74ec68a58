//! OpenTelemetry: profiles of containers, OTLP by HTTP (`POST /v1development/profiles`) or gRPC (`ProfilesService`).
//!
//! The signal is in development: each release of opentelemetry-proto may change the messages, and a receiver must speak
//! the one that [`VERSION`] names. Values are samples, and the period says what CPU time each stands for: so does
//! OpenTelemetry's own eBPF profiler, and receivers multiply. A request's profiles share its tables, so they are made when
//! a batch is sent; what waits is pprof, which is a tenth of the size.

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

use super::Format;
use super::otlp::{passes, resource, scope, texts};
use super::otlp_dictionary::Dictionary;
use super::queue::Weigh;
use podopsy_model::Owner;

/// The release of opentelemetry-proto whose messages these are: the crate's submodule.
pub const VERSION: &str = "1.10.0";

/// What a batch's pprof may be unpacked; ours are far below.
const UNPACKED: u64 = 256 << 20;

#[derive(Debug, Default)]
pub struct Profiles;

/// A profile of one container (or of all of the host) over some time.
#[derive(Debug)]
pub struct Minute {
    /// Stays the same when it is sent again.
    id: [u8; 16],
    node: String,
    owner: Owner,
    /// As `export::pprof` writes it, compressed.
    pprof: Vec<u8>,
}

impl Minute {
    pub fn new(node: &str, owner: &Owner, pprof: Vec<u8>) -> Minute {
        // All zeroes would be none.
        let id = fastrand::u128(1..).to_be_bytes();
        Minute { id, node: node.to_owned(), owner: owner.clone(), pprof }
    }
}

impl Weigh for Minute {
    fn bytes(&self) -> usize {
        let labels = self.owner.pod.iter().flat_map(|pod| &pod.labels);
        let labels: usize = labels.map(|(key, value)| key.len() + value.len() + 100).sum();
        size_of::<Minute>() + self.pprof.len() + labels + 600
    }
}

impl Format for Profiles {
    type Item = Minute;

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    fn body(&self, batch: &[Minute]) -> anyhow::Result<Vec<u8>> {
        let mut dictionary = Dictionary::new();
        // A container's minutes are under one resource.
        let mut resources: BTreeMap<(&str, &str, &str), ResourceProfiles> = BTreeMap::new();
        for minute in batch {
            let (pod, container) = (minute.owner.pod.as_ref(), minute.owner.container.as_ref());
            let whose = (
                minute.node.as_str(),
                pod.map_or("", |pod| &pod.uid),
                container.map_or("", |container| &container.id),
            );
            let profiles = resources.entry(whose).or_insert_with(|| ResourceProfiles {
                resource: Some(resource(&minute.node, pod, container)),
                scope_profiles: vec![ScopeProfiles { scope: Some(scope()), ..ScopeProfiles::default() }],
                schema_url: String::new(),
            });
            let profile = profile(minute, &mut dictionary)?;
            profiles.scope_profiles.iter_mut().for_each(|scope| scope.profiles.push(profile.clone()));
        }
        let resource_profiles = resources.into_values().collect();
        let request = ExportProfilesServiceRequest { resource_profiles, dictionary: Some(dictionary.end()) };
        Ok(request.encode_to_vec())
    }

    fn refused(&self, answer: &[u8]) -> u64 {
        let answer = ExportProfilesServiceResponse::decode(answer).ok();
        let partial = answer.and_then(|answer| answer.partial_success);
        partial.and_then(|partial| u64::try_from(partial.rejected_profiles).ok()).unwrap_or(0)
    }

    fn passes(&self, status: StatusCode) -> bool {
        passes(status)
    }
}

fn profile(minute: &Minute, dictionary: &mut Dictionary) -> anyhow::Result<Profile> {
    let mut bytes = Vec::new();
    let unpack = flate2::read::GzDecoder::new(minute.pprof.as_slice()).take(UNPACKED).read_to_end(&mut bytes);
    unpack.context("unpack a profile of ours")?;
    // The pprof crate has a prost of its own.
    let read = <protos::Profile as protos::Message>::decode(bytes.as_slice());
    let read = read.context("read a profile of ours")?;
    drop(bytes);
    let reader = Reader::new(&read, dictionary);
    Ok(reader.profile(minute.id, dictionary))
}

/// One pprof, and where its places stand in the request's tables.
struct Reader<'a> {
    read: &'a protos::Profile,
    /// By pprof's own ids.
    locations: BTreeMap<u64, i32>,
}

impl<'a> Reader<'a> {
    fn new(read: &'a protos::Profile, to: &mut Dictionary) -> Reader<'a> {
        let mut reader = Reader { read, locations: BTreeMap::new() };
        let functions: BTreeMap<u64, i32> =
            read.function.iter().map(|function| (function.id, reader.function(function, to))).collect();
        let mappings: BTreeMap<u64, (i32, Option<i32>)> =
            read.mapping.iter().map(|mapping| (mapping.id, reader.mapping(mapping, to))).collect();
        for location in &read.location {
            let (mapping, kind) = mappings.get(&location.mapping_id).copied().unwrap_or_default();
            let line = |line: &protos::Line| Line {
                function_index: functions.get(&line.function_id).copied().unwrap_or(0),
                line: line.line,
                column: 0,
            };
            let lines = location.line.iter().map(line).collect();
            reader.locations.insert(location.id, to.location(mapping, location.address, lines, kind));
        }
        reader
    }

    fn text(&self, id: i64) -> &'a str {
        usize::try_from(id).ok().and_then(|id| self.read.string_table.get(id)).map_or("", String::as_str)
    }

    fn function(&self, function: &protos::Function, to: &mut Dictionary) -> i32 {
        let [name, system_name, file] =
            [function.name, function.system_name, function.filename].map(|id| self.text(id));
        to.function(name, system_name, file)
    }

    /// And what kind of code its places have.
    fn mapping(&self, mapping: &protos::Mapping, to: &mut Dictionary) -> (i32, Option<i32>) {
        let (name, build_id) = (self.text(mapping.filename), self.text(mapping.build_id));
        let gnu = "process.executable.build_id.gnu";
        let known =
            (!build_id.is_empty()).then(|| to.attribute(gnu, Value::StringValue(build_id.to_owned())));
        let filename_strindex = to.text(name);
        let index = to.mapping(Mapping {
            memory_start: mapping.memory_start,
            memory_limit: mapping.memory_limit,
            file_offset: mapping.file_offset,
            filename_strindex,
            attribute_indices: known.into_iter().collect(),
        });
        let kind = match name {
            "[kernel]" => Some("kernel"),
            "[python]" => Some("cpython"),
            // Code made at run time may be anyone's.
            "[anonymous]" | "" => None,
            _ => Some("native"),
        };
        (index, kind.map(|kind| to.attribute("profile.frame.type", Value::StringValue(kind.to_owned()))))
    }

    fn profile(&self, id: [u8; 16], to: &mut Dictionary) -> Profile {
        let read = self.read;
        let ty = |ty: Option<&protos::ValueType>, to: &mut Dictionary| {
            let (ty, unit) = ty.map_or(("", ""), |ty| (self.text(ty.ty), self.text(ty.unit)));
            Some(ValueType { type_strindex: to.text(ty), unit_strindex: to.text(unit) })
        };
        // A sample is known by its stack and its attributes.
        let mut samples: BTreeMap<(i32, Vec<i32>), i64> = BTreeMap::new();
        for sample in &read.sample {
            let places = sample.location_id.iter().filter_map(|id| self.locations.get(id).copied());
            let stack = to.stack(places.collect());
            let count = samples.entry((stack, self.attributes(sample, to))).or_default();
            *count = count.saturating_add(sample.value.first().copied().unwrap_or(0));
        }
        let samples = samples.into_iter().map(|((stack_index, attribute_indices), count)| Sample {
            stack_index,
            attribute_indices,
            values: vec![count],
            ..Sample::default()
        });
        let comments: Vec<_> = read.comment.iter().map(|&id| self.text(id)).collect();
        let comment = to.attribute("pprof.profile.comment", texts(comments));
        Profile {
            sample_type: ty(read.sample_type.first(), to),
            samples: samples.collect(),
            time_unix_nano: u64::try_from(read.time_nanos).unwrap_or(0),
            duration_nano: u64::try_from(read.duration_nanos).unwrap_or(0),
            period_type: ty(read.period_type.as_ref(), to),
            period: read.period,
            profile_id: id.to_vec(),
            attribute_indices: vec![comment],
            ..Profile::default()
        }
    }

    /// Whose thread it was; pod, container and node are the resource's.
    fn attributes(&self, sample: &protos::Sample, to: &mut Dictionary) -> Vec<i32> {
        let named = sample.label.iter().filter_map(|label| {
            let (key, value) = match self.text(label.key) {
                "pid" => ("process.pid", Value::IntValue(label.num)),
                "tid" => ("thread.id", Value::IntValue(label.num)),
                // As in logs: a process names itself as it likes.
                "comm" => ("process.title", Value::StringValue(self.text(label.str).to_owned())),
                "thread" => ("thread.name", Value::StringValue(self.text(label.str).to_owned())),
                _ => return None,
            };
            Some(to.attribute(key, value))
        });
        let mut all: Vec<_> = named.collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
#[path = "otlp_profiles_tests.rs"]
mod tests;
