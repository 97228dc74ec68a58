//! The tables that all profiles of one OTLP request share. Each string, function, location and stack is stored once, and
//! is referenced by its index. The first entry of each table is empty and means "none", as the format requires.
//!
//! This module must not depend on the owners of the profiles.

use std::collections::HashMap;
use std::hash::Hash;

use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::profiles::v1development::{
    Function, KeyValueAndUnit, Line, Link, Location, Mapping, ProfilesDictionary, Stack,
};
use prost::Message;

/// Distinct entries in the order of their indices.
struct DistinctEntries<T> {
    indices: HashMap<Vec<u8>, i32>,
    entries: Vec<T>,
}

impl<T: Message + Default> DistinctEntries<T> {
    fn new() -> DistinctEntries<T> {
        let mut table = DistinctEntries { indices: HashMap::new(), entries: Vec::new() };
        table.index_of(T::default());
        table
    }

    /// Compares the encoded bytes, because messages with attributes of any kind implement neither `Ord` nor `Hash`.
    fn index_of(&mut self, entry: T) -> i32 {
        let entries = &mut self.entries;
        index_or_insert(&mut self.indices, entry.encode_to_vec(), || {
            entries.push(entry);
            entries.len()
        })
    }
}

/// The index of `key`. If it is new, `push` appends it and returns the new number of entries.
fn index_or_insert<K: Eq + Hash>(indices: &mut HashMap<K, i32>, key: K, push: impl FnOnce() -> usize) -> i32 {
    // Does not overflow: the bound on a request's bytes is reached long before.
    *indices.entry(key).or_insert_with(|| i32::try_from(push() - 1).unwrap_or(0))
}

/// Builds the tables of one request. Each function returns the index of an entry, and adds the entry if it is new.
pub struct Dictionary {
    string_indices: HashMap<String, i32>,
    strings: Vec<String>,
    mappings: DistinctEntries<Mapping>,
    locations: DistinctEntries<Location>,
    functions: DistinctEntries<Function>,
    attributes: DistinctEntries<KeyValueAndUnit>,
    stacks: DistinctEntries<Stack>,
}

impl Dictionary {
    pub fn new() -> Dictionary {
        let mut dictionary = Dictionary {
            string_indices: HashMap::new(),
            strings: Vec::new(),
            mappings: DistinctEntries::new(),
            locations: DistinctEntries::new(),
            functions: DistinctEntries::new(),
            attributes: DistinctEntries::new(),
            stacks: DistinctEntries::new(),
        };
        dictionary.string("");
        dictionary
    }

    pub fn string(&mut self, string: &str) -> i32 {
        // Avoids an allocation for a string that is known.
        if let Some(index) = self.string_indices.get(string) {
            return *index;
        }
        let strings = &mut self.strings;
        index_or_insert(&mut self.string_indices, string.to_owned(), || {
            strings.push(string.to_owned());
            strings.len()
        })
    }

    pub fn attribute(&mut self, key: &str, value: Value) -> i32 {
        let value = Some(AnyValue { value: Some(value) });
        let entry = KeyValueAndUnit { key_strindex: self.string(key), value, unit_strindex: 0 };
        self.attributes.index_of(entry)
    }

    pub fn mapping(&mut self, mapping: Mapping) -> i32 {
        self.mappings.index_of(mapping)
    }

    pub fn function(&mut self, name: &str, system_name: &str, file: &str) -> i32 {
        let function = Function {
            name_strindex: self.string(name),
            system_name_strindex: self.string(system_name),
            filename_strindex: self.string(file),
            start_line: 0,
        };
        self.functions.index_of(function)
    }

    pub fn location(&mut self, mapping_index: i32, address: u64, lines: Vec<Line>, kind: Option<i32>) -> i32 {
        let attribute_indices = kind.into_iter().collect();
        self.locations.index_of(Location { mapping_index, address, lines, attribute_indices })
    }

    /// `location_indices` begin with the innermost frame.
    pub fn stack(&mut self, location_indices: Vec<i32>) -> i32 {
        self.stacks.index_of(Stack { location_indices })
    }

    pub fn finish(self) -> ProfilesDictionary {
        ProfilesDictionary {
            mapping_table: self.mappings.entries,
            location_table: self.locations.entries,
            function_table: self.functions.entries,
            link_table: vec![Link::default()],
            string_table: self.strings,
            attribute_table: self.attributes.entries,
            stack_table: self.stacks.entries,
        }
    }
}
