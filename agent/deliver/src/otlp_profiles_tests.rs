//! Compares the profiles that a collector receives with the pprof that they were converted from.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesPartialSuccess;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::profiles::v1development::ProfilesDictionary;

use super::*;
use crate::otlp::string_attribute;
use crate::testing::lookup;
use podopsy_model::profile::Profile as ModelProfile;
use podopsy_profiles::export::example;

fn pprof(profile: &ModelProfile) -> Vec<u8> {
    let mut bytes = Vec::new();
    podopsy_profiles::export::pprof::write(profile, &mut bytes).unwrap();
    bytes
}

fn owner() -> Owner {
    let event = lookup("a", 1).event.clone();
    Owner { pod: event.pod, container: event.container, ..Owner::default() }
}

fn request(batch: &[OtlpProfile]) -> ExportProfilesServiceRequest {
    ExportProfilesServiceRequest::decode(OtlpProfiles.encode(batch).unwrap().as_slice()).unwrap()
}

/// The content of a frame, independent of the format: file, build id, range and offset of the mapping; address; name,
/// source and line number of each line.
type FrameFields = (String, String, [u64; 3], u64, Vec<(String, String, i64)>);
/// The number of samples by stack and thread.
type SampleCounts = BTreeMap<(Vec<FrameFields>, BTreeSet<String>), i64>;

fn counts_of_pprof(bytes: &[u8]) -> SampleCounts {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    let read = <protos::Profile as protos::Message>::decode(plain.as_slice()).unwrap();
    let text = |id: i64| read.string_table[id as usize].clone();
    let frame = |id: &u64| {
        let location = read.location.iter().find(|location| location.id == *id).unwrap();
        let mapping = read.mapping.iter().find(|mapping| mapping.id == location.mapping_id).cloned();
        let mapping = mapping.unwrap_or_default();
        let line = |line: &protos::Line| {
            let function = read.function.iter().find(|function| function.id == line.function_id).unwrap();
            (text(function.name), text(function.filename), line.line)
        };
        let range = [mapping.memory_start, mapping.memory_limit, mapping.file_offset];
        let lines = location.line.iter().map(line).collect();
        (text(mapping.filename), text(mapping.build_id), range, location.address, lines)
    };
    let mut counts = SampleCounts::new();
    for sample in &read.sample {
        let known = |label: &&protos::Label| ["pid", "tid", "comm", "thread"].contains(&&*text(label.key));
        let labels = sample.label.iter().filter(known);
        let thread = labels.map(|label| format!("{}{}", text(label.str), label.num)).collect();
        let stack = sample.location_id.iter().map(frame).collect();
        *counts.entry((stack, thread)).or_default() += sample.value[0];
    }
    counts
}

fn counts_of_otlp(profile: &Profile, tables: &ProfilesDictionary) -> SampleCounts {
    let text = |index: i32| tables.string_table[index as usize].clone();
    let attribute = |index: &i32| {
        let attribute = &tables.attribute_table[*index as usize];
        (text(attribute.key_strindex), attribute.value.clone().unwrap().value.unwrap())
    };
    let frame = |index: &i32| {
        let location = &tables.location_table[*index as usize];
        let mapping = &tables.mapping_table[location.mapping_index as usize];
        let build_id = mapping.attribute_indices.iter().map(attribute).map(|(key, value)| {
            assert_eq!(key, "process.executable.build_id.gnu");
            let Value::StringValue(value) = value else { panic!("{value:?}") };
            value
        });
        let line = |line: &Line| {
            let function = &tables.function_table[line.function_index as usize];
            (text(function.name_strindex), text(function.filename_strindex), line.line)
        };
        let range = [mapping.memory_start, mapping.memory_limit, mapping.file_offset];
        let lines = location.lines.iter().map(line).collect();
        (text(mapping.filename_strindex), build_id.collect(), range, location.address, lines)
    };
    let mut counts = SampleCounts::new();
    for sample in &profile.samples {
        assert_eq!((sample.values.len(), sample.link_index), (1, 0));
        let stack = &tables.stack_table[sample.stack_index as usize];
        let thread = sample.attribute_indices.iter().map(|index| match attribute(index).1 {
            Value::StringValue(value) => format!("{value}0"),
            Value::IntValue(value) => format!("{value}"),
            value => panic!("{value:?}"),
        });
        let stack = stack.location_indices.iter().map(frame).collect();
        let earlier = counts.insert((stack, thread.collect()), sample.values[0]);
        assert_eq!(earlier, None, "a stack of a thread is one sample");
    }
    counts
}

#[test]
fn a_collector_gets_the_same_samples_as_a_pprof_reader() {
    let profile = example::profile();
    let bytes = pprof(&profile);
    let again =
        ModelProfile { start: jiff::Timestamp::from_second(1_800_000_060).unwrap(), ..profile.clone() };
    let batch = [
        OtlpProfile::new("n1", &owner(), bytes.clone()),
        OtlpProfile::new("n1", &Owner::default(), bytes.clone()),
        OtlpProfile::new("n1", &owner(), pprof(&again)),
    ];
    let request = request(&batch);
    assert_eq!(request.resource_profiles.len(), 2, "one container, and the host");
    let tables = request.dictionary.unwrap();
    let of = |resource: usize| {
        let resource = &request.resource_profiles[resource];
        (resource.resource.clone().unwrap().attributes, &resource.scope_profiles[0].profiles)
    };
    let has = |all: &[KeyValue], key: &str, value: &str| all.contains(&string_attribute(key, value));
    let ((host, _), (pod, profiles)) = (of(0), of(1));
    assert!(has(&host, "k8s.node.name", "n1") && !host.iter().any(|pair| pair.key == "k8s.pod.uid"));
    assert!(has(&pod, "k8s.pod.name", "basket") && has(&pod, "container.id", "c1"), "{pod:?}");
    assert!(has(&pod, "k8s.container.name", "api") && has(&pod, "k8s.namespace.name", "shop"));
    assert_eq!(profiles.len(), 2, "two profiles of the container");
    let wanted = counts_of_pprof(&bytes);
    assert_eq!(wanted.len(), 3);
    for profile in profiles.iter().chain(of(0).1) {
        assert_eq!(counts_of_otlp(profile, &tables), wanted);
    }

    let (first, second) = (&profiles[0], &profiles[1]);
    let type_and_unit = |ty: &Option<ValueType>| {
        let ty = ty.as_ref().unwrap();
        [ty.type_strindex, ty.unit_strindex].map(|index| tables.string_table[index as usize].as_str())
    };
    assert_eq!(type_and_unit(&first.sample_type), ["samples", "count"]);
    assert_eq!(type_and_unit(&first.period_type), ["cpu", "nanoseconds"]);
    let sum: i64 = first.samples.iter().map(|sample| sample.values[0]).sum();
    let read = podopsy_profiles::import::pprof::read(bytes.as_slice(), Some("cpu")).unwrap();
    assert_eq!(i128::from(sum * first.period), i128::from(read.total()), "the CPU time that pprof has");
    assert_eq!((first.time_unix_nano, first.duration_nano), (1_800_000_000_000_000_000, 15_000_000_000));
    assert_eq!(second.time_unix_nano - first.time_unix_nano, 60_000_000_000);
    assert!(first.profile_id.len() == 16 && first.profile_id != second.profile_id);
    assert_eq!(first.profile_id, batch[0].id, "a profile that is sent again has the same id");
    let comment = &tables.attribute_table[first.attribute_indices[0] as usize];
    assert_eq!(tables.string_table[comment.key_strindex as usize], "pprof.profile.comment");
    assert!(format!("{comment:?}").contains("loss ring_full: 2"), "{comment:?}");
}

#[test]
fn tables_begin_with_an_empty_entry_and_have_no_duplicates() {
    let batch = ["n1", "n2"].map(|node| OtlpProfile::new(node, &owner(), pprof(&example::profile())));
    let tables = request(&batch).dictionary.unwrap();
    fn check<T: Message + Default + PartialEq + std::fmt::Debug>(all: &[T]) -> usize {
        assert_eq!(all[0], T::default());
        let unlike: BTreeSet<_> = all.iter().map(Message::encode_to_vec).collect();
        assert_eq!(unlike.len(), all.len(), "{all:?}");
        all.len()
    }
    assert_eq!(tables.string_table[0], "");
    assert_eq!(tables.string_table.iter().collect::<BTreeSet<_>>().len(), tables.string_table.len());
    assert_eq!(check(&tables.link_table), 1);
    assert_eq!(check(&tables.stack_table), 4, "three stacks, though there are two profiles");
    check(&tables.mapping_table);
    check(&tables.location_table);
    check(&tables.function_table);
    check(&tables.attribute_table);
    let kinds = |name: &str| {
        let mapping = tables
            .mapping_table
            .iter()
            .position(|mapping| tables.string_table[mapping.filename_strindex as usize] == name);
        let locations = tables.location_table.iter();
        let locations = locations.filter(|frame| Some(frame.mapping_index as usize) == mapping);
        let value = |index: &i32| tables.attribute_table[*index as usize].value.clone().unwrap().value;
        locations.flat_map(|frame| frame.attribute_indices.iter().map(value)).collect::<Vec<_>>()
    };
    let is = |kind: &str| Some(Value::StringValue(kind.to_owned()));
    assert_eq!(kinds("[kernel]"), [is("kernel")]);
    assert!(kinds("/app/checkout").iter().all(|kind| *kind == is("native")));
}

#[test]
fn invalid_pprof_is_an_error_and_rejected_profiles_are_read_from_the_response() {
    assert!(OtlpProfiles.encode(&[OtlpProfile::new("n1", &Owner::default(), b"no".to_vec())]).is_err());
    let partial = ExportProfilesPartialSuccess { rejected_profiles: 2, error_message: String::new() };
    let answer = ExportProfilesServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    assert_eq!((OtlpProfiles.rejected(&answer), OtlpProfiles.rejected(b"")), (2, 0));
}

/// The changelog in the crate's submodule names the release.
#[test]
fn the_version_is_the_release_in_the_opentelemetry_proto_crate() {
    let mut of = std::process::Command::new(env!("CARGO"));
    let of =
        of.args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]);
    let output = of.output().unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "opentelemetry-proto").unwrap();
    let manifest = std::path::Path::new(package["manifest_path"].as_str().unwrap());
    let changes = "src/proto/opentelemetry-proto/CHANGELOG.md";
    let changes = std::fs::read_to_string(manifest.with_file_name(changes)).unwrap();
    let release = changes.lines().find_map(|line| line.strip_prefix("## ")?.split_once(" - ")).unwrap().0;
    assert_eq!(release, VERSION);
}
