//! What the profiles of one OTLP request share: each text, function, place and stack stands in it once, and is named by
//! its position. The first of each table is empty and means "none", as the format wants it.
//!
//! Must not know: whose profiles they are.

use std::collections::HashMap;
use std::hash::Hash;

use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::profiles::v1development::{
    Function, KeyValueAndUnit, Line, Link, Location, Mapping, ProfilesDictionary, Stack,
};
use prost::Message;

/// Entries in the order of their positions; those that are alike have one.
struct Table<T> {
    positions: HashMap<Vec<u8>, i32>,
    all: Vec<T>,
}

impl<T: Message + Default> Table<T> {
    fn new() -> Table<T> {
        let mut table = Table { positions: HashMap::new(), all: Vec::new() };
        table.position(T::default());
        table
    }

    /// What was written alike is alike: messages with attributes of any kind have no order and no hash of their own.
    fn position(&mut self, entry: T) -> i32 {
        let all = &mut self.all;
        position(&mut self.positions, entry.encode_to_vec(), || {
            all.push(entry);
            all.len()
        })
    }
}

/// Where `key` stands; `push` puts it at the end, and says how many there are then.
fn position<K: Eq + Hash>(positions: &mut HashMap<K, i32>, key: K, push: impl FnOnce() -> usize) -> i32 {
    // A request is bounded by its bytes long before this.
    *positions.entry(key).or_insert_with(|| i32::try_from(push() - 1).unwrap_or(0))
}

pub struct Dictionary {
    text_positions: HashMap<String, i32>,
    texts: Vec<String>,
    mappings: Table<Mapping>,
    locations: Table<Location>,
    functions: Table<Function>,
    attributes: Table<KeyValueAndUnit>,
    stacks: Table<Stack>,
}

impl Dictionary {
    pub fn new() -> Dictionary {
        let mut dictionary = Dictionary {
            text_positions: HashMap::new(),
            texts: Vec::new(),
            mappings: Table::new(),
            locations: Table::new(),
            functions: Table::new(),
            attributes: Table::new(),
            stacks: Table::new(),
        };
        dictionary.text("");
        dictionary
    }

    pub fn text(&mut self, text: &str) -> i32 {
        if let Some(known) = self.text_positions.get(text) {
            return *known;
        }
        let texts = &mut self.texts;
        position(&mut self.text_positions, text.to_owned(), || {
            texts.push(text.to_owned());
            texts.len()
        })
    }

    pub fn attribute(&mut self, key: &str, value: Value) -> i32 {
        let value = Some(AnyValue { value: Some(value) });
        let entry = KeyValueAndUnit { key_strindex: self.text(key), value, unit_strindex: 0 };
        self.attributes.position(entry)
    }

    pub fn mapping(&mut self, mapping: Mapping) -> i32 {
        self.mappings.position(mapping)
    }

    pub fn function(&mut self, name: &str, system_name: &str, file: &str) -> i32 {
        let function = Function {
            name_strindex: self.text(name),
            system_name_strindex: self.text(system_name),
            filename_strindex: self.text(file),
            start_line: 0,
        };
        self.functions.position(function)
    }

    pub fn location(&mut self, mapping_index: i32, address: u64, lines: Vec<Line>, kind: Option<i32>) -> i32 {
        let attribute_indices = kind.into_iter().collect();
        self.locations.position(Location { mapping_index, address, lines, attribute_indices })
    }

    /// Innermost first.
    pub fn stack(&mut self, location_indices: Vec<i32>) -> i32 {
        self.stacks.position(Stack { location_indices })
    }

    pub fn end(self) -> ProfilesDictionary {
        ProfilesDictionary {
            mapping_table: self.mappings.all,
            location_table: self.locations.all,
            function_table: self.functions.all,
            link_table: vec![Link::default()],
            string_table: self.texts,
            attribute_table: self.attributes.all,
            stack_table: self.stacks.all,
        }
    }
}
