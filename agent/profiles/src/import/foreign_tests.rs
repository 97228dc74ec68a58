//! Profiles that other programs write: several types of values, frames to drop, addresses without names, damaged files.

use pprof::protos::{self, Message};

use super::pprof::{ImportError, PprofFile, read};
use super::{ImportedProfile, ValueType};

/// Writes a profile file by file, field by field.
struct ProfileWriter(protos::Profile);

impl ProfileWriter {
    fn new(types: &[(&str, &str)]) -> ProfileWriter {
        let mut writer =
            ProfileWriter(protos::Profile { string_table: vec![String::new()], ..Default::default() });
        for (kind, unit) in types {
            let value_type = protos::ValueType { ty: writer.text(kind), unit: writer.text(unit) };
            writer.0.sample_type.push(value_type);
        }
        writer
    }

    fn text(&mut self, text: &str) -> i64 {
        self.0.string_table.push(text.to_owned());
        self.0.string_table.len() as i64 - 1
    }

    /// A sample whose locations, innermost first, have a function each.
    fn sample(mut self, stack: &[&str], values: &[i64]) -> Self {
        let location_id = stack.iter().map(|name| self.location(name)).collect();
        self.0.sample.push(protos::Sample { location_id, value: values.to_vec(), ..Default::default() });
        self
    }

    fn location(&mut self, name: &str) -> u64 {
        let name = self.text(name);
        let id = self.0.location.len() as u64 + 1;
        self.0.function.push(protos::Function { id, name, ..Default::default() });
        let line = vec![protos::Line { function_id: id, line: 0 }];
        self.0.location.push(protos::Location { id, line, ..Default::default() });
        id
    }

    /// A sample at an address without a name, in a file that is mapped from offset 0x1000 on at `start`.
    fn unnamed(mut self, start: u64, address: u64, value: i64) -> Self {
        let filename = self.text("/app/work");
        let (memory_limit, id) = (start + 0x1000, self.0.mapping.len() as u64 + 1);
        self.0.mapping.push(protos::Mapping {
            id,
            memory_start: start,
            memory_limit,
            file_offset: 0x1000,
            filename,
            ..Default::default()
        });
        let location = self.0.location.len() as u64 + 1;
        self.0.location.push(protos::Location {
            id: location,
            mapping_id: id,
            address,
            ..Default::default()
        });
        self.0.sample.push(protos::Sample {
            location_id: vec![location],
            value: vec![value],
            ..Default::default()
        });
        self
    }

    fn drop_frames(mut self, expression: &str) -> Self {
        self.0.drop_frames = self.text(expression);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }
}

const CPU: &[(&str, &str)] = &[("cpu", "nanoseconds")];

fn stacks(imported: &ImportedProfile) -> Vec<(Vec<&str>, u64)> {
    let name = |&id: &u32| &*imported.functions[id as usize];
    imported.stacks().map(|(stack, value)| (stack.iter().map(name).collect(), value)).collect()
}

#[test]
fn a_file_lists_its_types_of_values_and_the_default_one() {
    let mut writer = ProfileWriter::new(&[("alloc_space", "bytes"), ("inuse_space", "bytes")]);
    let types = |writer: &ProfileWriter| {
        PprofFile::unpack(writer.bytes().as_slice()).unwrap().tables().unwrap().value_types().unwrap()
    };
    let value_type = |kind: &str| ValueType { kind: kind.into(), unit: "bytes".into() };
    assert_eq!(types(&writer), (vec![value_type("alloc_space"), value_type("inuse_space")], 1));
    writer.0.default_sample_type = writer.text("alloc_space");
    assert_eq!(types(&writer).1, 0);
}

#[test]
fn an_address_without_a_name_is_the_same_wherever_its_file_is_mapped() {
    let at = |start| ProfileWriter::new(CPU).unnamed(start, start + 0x52, 1).bytes();
    for bytes in [at(0x5555_5555_4000), at(0x7f00_0000_0000)] {
        assert_eq!(stacks(&read(bytes.as_slice(), None).unwrap()), [(vec!["work+0x1052"], 1)]);
    }
    // An address outside of its mapping says nothing about the file.
    let outside = ProfileWriter::new(CPU).unnamed(0x4000, 0x52, 1).bytes();
    assert_eq!(stacks(&read(outside.as_slice(), None).unwrap()), [(vec!["work+0x52"], 1)]);
}

#[test]
fn frames_that_the_file_drops_are_left_out() {
    let heap = &[("inuse_objects", "count"), ("inuse_space", "bytes")];
    let file = ProfileWriter::new(heap)
        .sample(&["tcmalloc::Span", "malloc", "remember_request", "main"], &[1, 100])
        .sample(&["operator new", "cache_page", "main"], &[1, 50])
        .drop_frames("operator new.*|malloc|tcmalloc::.*");
    let imported = read(file.bytes().as_slice(), None).unwrap();
    assert_eq!(
        stacks(&imported),
        [(vec!["remember_request", "main"], 100), (vec!["cache_page", "main"], 50)]
    );
    let damaged = ProfileWriter::new(CPU).sample(&["main"], &[1]).drop_frames("(");
    assert_eq!(read(damaged.bytes().as_slice(), None).unwrap_err(), ImportError::NoExpression);
}

#[test]
fn builds_of_a_program_have_the_same_names() {
    let builds = [
        ["_ZN4shop5price17h0123456789abcdefE", "shop::main::haaaaaaaaaaaaaaaa", "hash.llvm.123"],
        ["_ZN4shop5price17hfedcba9876543210E", "shop::main::hbbbbbbbbbbbbbbbb", "hash.llvm.987"],
    ];
    for names in builds {
        let file = ProfileWriter::new(CPU).sample(&names, &[1]).bytes();
        assert_eq!(
            stacks(&read(file.as_slice(), None).unwrap()),
            [(vec!["shop::price", "shop::main", "hash"], 1)]
        );
    }
}

#[test]
fn two_profiles_in_one_file_are_refused_by_what_does_not_fit() {
    let file = ProfileWriter::new(CPU).sample(&["main"], &[1]).bytes();
    let error = read([file.clone(), file].concat().as_slice(), None).unwrap_err().to_string();
    assert!(error.contains("a sample has 1 value, and there are 2 types of values"), "{error}");
}

#[test]
fn a_profile_in_a_former_format_is_refused_with_the_command_that_converts_it() {
    for text in ["heap profile: 1: 2 [3: 4] @ heap/524288\n", "--- mutex:\n", "goroutine profile: total 7\n"]
    {
        let error = read(text.as_bytes(), None).unwrap_err();
        assert_eq!(error, ImportError::Legacy, "{text}");
        assert!(error.to_string().contains("go tool pprof -proto OLD > NEW"));
    }
}
