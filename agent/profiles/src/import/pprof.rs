//! Reads pprof's profile.proto, gzipped or not, in two passes: the tables of functions and locations, then the samples.
//!
//! Must not depend on: how podopsy writes the format.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::drop_frames::{DropFrames, Dropped};
use super::function_name::comparable;
use super::labels::{LabelSets, raw_label};
use super::wire::{Fields, WireError, WireValue};
use super::{ImportedProfile, ImportedStack, ValueType};
use podopsy_model::profile::{NO_MAPPING, file_name, unnamed_frame};
use podopsy_model::text::escape_bytes;

/// Bounds of a file.
#[derive(Clone, Copy, Debug)]
struct ImportLimits {
    /// Unpacked bytes. A minute of a large node has 2 MB.
    bytes: u64,
    /// Texts, functions, mappings, locations and samples, each.
    entries: usize,
    /// Frames of all stacks together, inlined ones included.
    frames: usize,
}

const LIMITS: ImportLimits = ImportLimits { bytes: 256 << 20, entries: 2 << 20, frames: 16 << 20 };
/// Bytes of a name that are kept.
const MAX_NAME: usize = 1024;

/// Why a file cannot be imported. The texts follow the file's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("is not a pprof profile (profile.proto, gzipped or not)")]
    Damaged,
    #[error("has more than {0}: too large to compare")]
    TooLarge(String),
    #[error("has no values of type {wanted}; it has {}", has.join(", "))]
    NoSuchValue { wanted: String, has: Vec<String> },
    #[error("has negative values: it is a difference of profiles, not a profile")]
    Negative,
    #[error(
        "is damaged: a sample has {values}, and there are {kinds} types of values. It may be two profiles in one file: \
         go tool pprof -proto adds profiles up"
    )]
    WrongCount { values: String, kinds: usize },
    #[error("names frames to drop by what is no regular expression")]
    NoExpression,
    #[error("is in pprof's former format: go tool pprof -proto OLD > NEW converts it")]
    Legacy,
}

impl From<WireError> for ImportError {
    fn from(_: WireError) -> Self {
        ImportError::Damaged
    }
}

/// A file that was read, and whose profile was not yet.
#[derive(Debug)]
pub struct PprofFile {
    bytes: Vec<u8>,
}

impl PprofFile {
    pub fn unpack(from: impl Read) -> Result<PprofFile, ImportError> {
        Ok(PprofFile { bytes: unpack(from, LIMITS)? })
    }

    /// Reads the tables that its samples refer to.
    pub fn tables(&self) -> Result<PprofTables<'_>, ImportError> {
        Ok(PprofTables {
            bytes: &self.bytes,
            tables: ProfileTables::read(&self.bytes, LIMITS)?,
            limits: LIMITS,
        })
    }
}

/// A file whose tables were read, and whose samples were not yet.
pub struct PprofTables<'a> {
    bytes: &'a [u8],
    tables: ProfileTables<'a>,
    limits: ImportLimits,
}

impl PprofTables<'_> {
    /// The types of its values, and the index of the default one: the one that the file says, or else the last, as `go tool
    /// pprof` has it.
    pub fn value_types(&self) -> Result<(Vec<ValueType>, usize), ImportError> {
        let name = |index| self.tables.name(index);
        let types =
            self.tables.kinds.iter().map(|&(kind, unit)| ValueType { kind: name(kind), unit: name(unit) });
        Ok((types.collect(), self.tables.column(None)?))
    }

    /// Reads the values of one type. None: the default one.
    pub fn read(&self, value: Option<&str>) -> Result<ImportedProfile, ImportError> {
        let PprofTables { bytes, tables, limits } = self;
        let column = tables.column(value)?;
        let (kind, unit) = tables.kinds[column];
        let mut imported = ImportedProfile {
            kind: tables.name(kind),
            unit: tables.name(unit),
            ..ImportedProfile::default()
        };
        let drop_frames = DropFrames::new(tables.text(tables.drop_frames), tables.text(tables.keep_frames))?;
        let mut names = FunctionNames {
            tables,
            drop_frames,
            locations: HashMap::new(),
            by_text: HashMap::new(),
            functions: Vec::new(),
            module_numbers: HashMap::new(),
            module_names: vec![Arc::default()],
            label_sets: LabelSets::default(),
        };
        for field in Fields(bytes) {
            let (2, value) = field? else { continue };
            read_sample(value.bytes()?, column, &mut names, &mut imported, *limits)?;
        }
        imported.functions = names.functions;
        imported.module_names = names.module_names;
        imported.labels = names.label_sets.into_sets();
        Ok(imported)
    }
}

/// Reads a profile. `value` is the type of the values to read. Without it, the file's default type is read, or else its
/// last, as `go tool pprof` does.
pub fn read(from: impl Read, value: Option<&str>) -> Result<ImportedProfile, ImportError> {
    PprofFile::unpack(from)?.tables()?.read(value)
}

#[cfg(test)]
fn read_unpacked(
    bytes: &[u8],
    value: Option<&str>,
    limits: ImportLimits,
) -> Result<ImportedProfile, ImportError> {
    PprofTables { bytes, tables: ProfileTables::read(bytes, limits)?, limits }.read(value)
}

/// How files in the formats before profile.proto begin: text, and Go's binary CPU profile (words 0, 3, 0).
const LEGACY: [&[u8]; 9] = [
    b"heap profile:",
    b"heapprofile:",
    b"heap_v2/",
    b"goroutine profile:",
    b"threadcreate profile:",
    b"--- contention",
    b"--- mutex",
    b"--- Memory map",
    b"\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
];

fn unpack(from: impl Read, limits: ImportLimits) -> Result<Vec<u8>, ImportError> {
    let mut from = BufReader::new(from);
    let unreadable = |error: std::io::Error| ImportError::Unreadable(error.to_string());
    let is_gzip = from.fill_buf().map_err(unreadable)?.starts_with(&[0x1f, 0x8b]);
    let mut bytes = Vec::new();
    let read = if is_gzip {
        MultiGzDecoder::new(from).take(limits.bytes + 1).read_to_end(&mut bytes)
    } else {
        from.take(limits.bytes + 1).read_to_end(&mut bytes)
    };
    read.map_err(unreadable)?;
    if bytes.len() as u64 > limits.bytes {
        return Err(ImportError::TooLarge(format!("{} MiB", limits.bytes >> 20)));
    }
    if LEGACY.iter().any(|start| bytes.starts_with(start)) {
        return Err(ImportError::Legacy);
    }
    Ok(bytes)
}

#[derive(Clone, Copy, Default)]
struct Mapping {
    start: u64,
    end: u64,
    file_offset: u64,
    /// Index of its file's name.
    file: u64,
}

impl Mapping {
    /// The offset in the file, which is the same in each run of a program. An address outside of the mapping stays as it is.
    fn offset(&self, address: u64) -> u64 {
        let is_inside = (self.start..self.end).contains(&address);
        if is_inside { (address - self.start).wrapping_add(self.file_offset) } else { address }
    }
}

/// The tables that samples refer to. Texts are slices of the file.
#[derive(Default)]
struct ProfileTables<'a> {
    texts: Vec<&'a [u8]>,
    /// Type and unit of each value, as indices of texts.
    kinds: Vec<(u64, u64)>,
    default_kind: u64,
    /// Regular expressions, as indices of texts.
    drop_frames: u64,
    keep_frames: u64,
    /// Function id → index of its name.
    functions: HashMap<u64, u64>,
    mappings: HashMap<u64, Mapping>,
    /// Location id → its message, which is read when a sample needs it.
    locations: HashMap<u64, &'a [u8]>,
}

impl<'a> ProfileTables<'a> {
    fn read(bytes: &'a [u8], limits: ImportLimits) -> Result<Self, ImportError> {
        let mut tables = ProfileTables::default();
        for field in Fields(bytes) {
            let (number, value) = field?;
            match number {
                1 => {
                    let kind = numbers::<3>(value.bytes()?)?;
                    tables.kinds.push((kind[1], kind[2]));
                }
                3 => {
                    let [_, id, start, end, file_offset, file] = numbers::<6>(value.bytes()?)?;
                    tables.mappings.insert(id, Mapping { start, end, file_offset, file });
                }
                4 => {
                    let message = value.bytes()?;
                    tables.locations.insert(numbers::<2>(message)?[1], message);
                }
                5 => {
                    let function = numbers::<4>(value.bytes()?)?;
                    // The name, or else the name in the symbol table.
                    let name = if function[2] != 0 { function[2] } else { function[3] };
                    tables.functions.insert(function[1], name);
                }
                6 => tables.texts.push(value.bytes()?),
                7 => tables.drop_frames = value.number()?,
                8 => tables.keep_frames = value.number()?,
                14 => tables.default_kind = value.number()?,
                _ => {}
            }
            for (len, what) in [
                (tables.texts.len(), "texts"),
                (tables.functions.len(), "functions"),
                (tables.mappings.len(), "mappings"),
                (tables.locations.len(), "locations"),
                (tables.kinds.len().saturating_mul(limits.entries / 64), "kinds of values"),
            ] {
                if len > limits.entries {
                    return Err(ImportError::TooLarge(format!("{} {what}", limits.entries)));
                }
            }
        }
        // An empty file is a valid message, but not a profile: the format requires "" as its first text.
        if tables.kinds.is_empty() || tables.texts.first().is_none_or(|first| !first.is_empty()) {
            return Err(ImportError::Damaged);
        }
        Ok(tables)
    }

    fn text(&self, index: u64) -> &'a [u8] {
        usize::try_from(index).ok().and_then(|index| self.texts.get(index)).copied().unwrap_or_default()
    }

    fn name(&self, index: u64) -> String {
        let text = self.text(index);
        let mut name = escape_bytes(&text[..text.len().min(MAX_NAME)]);
        if text.len() > MAX_NAME {
            name.push('…');
        }
        name
    }

    /// The index of the value to read from each sample.
    fn column(&self, wanted: Option<&str>) -> Result<usize, ImportError> {
        let find = |name: &[u8]| self.kinds.iter().position(|&(kind, _)| self.text(kind) == name);
        let last = self.kinds.len() - 1;
        match wanted {
            Some(wanted) => find(wanted.as_bytes()).ok_or_else(|| ImportError::NoSuchValue {
                wanted: wanted.to_owned(),
                has: self.kinds.iter().map(|&(kind, _)| self.name(kind)).collect(),
            }),
            None => Ok(find(self.text(self.default_kind)).unwrap_or(last)),
        }
    }
}

/// The numbers of the fields below `N`; if a field comes twice, the last one counts.
fn numbers<const N: usize>(message: &[u8]) -> Result<[u64; N], WireError> {
    let mut found = [0; N];
    for field in Fields(message) {
        if let (number, WireValue::Number(value)) = field?
            && let Some(slot) = usize::try_from(number).ok().and_then(|number| found.get_mut(number))
        {
            *slot = value;
        }
    }
    Ok(found)
}

/// Distinct function names; several functions and locations may share one.
struct FunctionNames<'t, 'a> {
    tables: &'t ProfileTables<'a>,
    drop_frames: DropFrames,
    locations: HashMap<u64, Location>,
    by_text: HashMap<Arc<str>, u32>,
    functions: Vec<Arc<str>>,
    /// By the index of the file's name.
    module_numbers: HashMap<u64, u32>,
    module_names: Vec<Arc<str>>,
    label_sets: LabelSets,
}

/// What samples need of a location.
struct Location {
    /// Indices of its function names, innermost first.
    functions: Box<[u32]>,
    /// Index of its file's name; 0: none.
    module: u32,
    dropped: Dropped,
}

impl FunctionNames<'_, '_> {
    /// Reads a location, unless that was done.
    fn load(&mut self, id: u64) -> Result<(), ImportError> {
        if !self.locations.contains_key(&id) {
            let location = self.read_location(id)?;
            self.locations.insert(id, location);
        }
        Ok(())
    }

    fn read_location(&mut self, id: u64) -> Result<Location, ImportError> {
        let message = self.tables.locations.get(&id).copied().unwrap_or_default();
        let [_, _, mapping, address] = numbers::<4>(message)?;
        let mut names = Vec::new();
        for field in Fields(message) {
            let (4, line) = field? else { continue };
            let function = numbers::<2>(line.bytes()?)?[1];
            let name = self.tables.functions.get(&function).copied().unwrap_or(0);
            let name = self.tables.text(name);
            if !name.is_empty() {
                names.push(comparable(name));
            }
        }
        let dropped = self.drop_frames.of(&mut names);
        let mapping = self.tables.mappings.get(&mapping).copied().unwrap_or_default();
        if names.is_empty() && dropped == Dropped::Nothing {
            let file = self.tables.name(mapping.file);
            let file = if file_name(&file).is_empty() { NO_MAPPING } else { &file };
            names.push(unnamed_frame(file, mapping.offset(address)));
        }
        let functions = names.into_iter().map(|name| self.index(name)).collect::<Result<_, _>>()?;
        Ok(Location { functions, module: self.module(mapping.file)?, dropped })
    }

    /// The number of a file's name.
    fn module(&mut self, text: u64) -> Result<u32, ImportError> {
        if self.tables.text(text).is_empty() {
            return Ok(0);
        }
        if let Some(&number) = self.module_numbers.get(&text) {
            return Ok(number);
        }
        let number = u32::try_from(self.module_names.len()).map_err(|_| ImportError::Damaged)?;
        self.module_names.push(self.tables.name(text).into());
        self.module_numbers.insert(text, number);
        Ok(number)
    }

    fn index(&mut self, name: String) -> Result<u32, ImportError> {
        if let Some(&number) = self.by_text.get(&*name) {
            return Ok(number);
        }
        let number = u32::try_from(self.functions.len()).map_err(|_| ImportError::Damaged)?;
        let name = Arc::<str>::from(name);
        self.functions.push(Arc::clone(&name));
        self.by_text.insert(name, number);
        Ok(number)
    }
}

/// Adds a sample's stack and its value to `imported`; a value of 0 adds nothing.
fn read_sample(
    message: &[u8],
    column: usize,
    names: &mut FunctionNames<'_, '_>,
    imported: &mut ImportedProfile,
    limits: ImportLimits,
) -> Result<(), ImportError> {
    let (mut locations, mut labels, mut seen, mut value) = (Vec::new(), Vec::new(), 0, 0);
    for field in Fields(message) {
        match field? {
            (1, ids) => {
                for id in ids.numbers() {
                    locations.push(id?);
                }
            }
            (2, values) => {
                for number in values.numbers() {
                    let number = number?;
                    if seen == column {
                        value = u64::try_from(number.cast_signed()).map_err(|_| ImportError::Negative)?;
                    }
                    seen += 1;
                }
            }
            (3, label) => labels.push(raw_label(label.bytes()?)?),
            _ => {}
        }
    }
    let kinds = names.tables.kinds.len();
    if seen != kinds {
        let values = if seen == 1 { "1 value".to_owned() } else { format!("{seen} values") };
        return Err(ImportError::WrongCount { values, kinds });
    }
    if value == 0 {
        return Ok(());
    }
    if imported.stacks.len() >= limits.entries {
        return Err(ImportError::TooLarge(format!("{} samples", limits.entries)));
    }
    let start = imported.frames.len();
    for id in &locations {
        names.load(*id)?;
    }
    let dropped = |id: &u64| names.locations.get(id).map_or(Dropped::Nothing, |location| location.dropped);
    let first = DropFrames::first_kept(locations.iter().map(dropped));
    for location in locations[first..].iter().filter_map(|id| names.locations.get(id)) {
        if imported.frames.len() + location.functions.len() > limits.frames {
            return Err(ImportError::TooLarge(format!("{} frames", limits.frames)));
        }
        imported.frames.extend_from_slice(&location.functions);
        imported.modules.resize(imported.frames.len(), location.module);
    }
    let tables = names.tables;
    let labels = names.label_sets.number(labels, |text| tables.name(text), limits.entries)?;
    imported.stacks.push(ImportedStack { start, end: imported.frames.len(), labels, value });
    Ok(())
}

#[cfg(test)]
#[path = "pprof_tests.rs"]
mod tests;
