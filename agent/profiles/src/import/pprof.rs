//! Reads pprof's profile.proto, gzipped or not.
//!
//! Must not know: how we write it. Two ways through the bytes: what functions and places there are, then the samples.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::wire::{Damaged, Fields, Value};
use super::{Imported, Stack};
use podopsy_model::text::escape_bytes;

/// What a file may cost.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Bytes, unpacked. A minute of a large node has 2 MB.
    bytes: u64,
    /// Texts, functions, mappings, places and samples, each.
    entries: usize,
    /// Frames of all stacks together, inlined ones included.
    frames: usize,
}

const LIMITS: Limits = Limits { bytes: 256 << 20, entries: 2 << 20, frames: 16 << 20 };
/// Longest name shown.
const MAX_NAME: usize = 1024;

/// Why a file is no profile that can be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("is no pprof profile (profile.proto, gzipped or not)")]
    Damaged,
    #[error("has more than {0}: too large to compare")]
    TooLarge(String),
    #[error("has no values called {wanted}, but {}", has.join(", "))]
    NoSuchValue { wanted: String, has: Vec<String> },
    #[error("has values below zero: it is a difference already")]
    Negative,
}

impl From<Damaged> for Unusable {
    fn from(Damaged: Damaged) -> Self {
        Unusable::Damaged
    }
}

/// Reads a profile. `value`: which of its values; else the file's default, else its last, as `go tool pprof` has it.
pub fn read(from: impl Read, value: Option<&str>) -> Result<Imported, Unusable> {
    read_within(from, value, LIMITS)
}

fn read_within(from: impl Read, value: Option<&str>, limits: Limits) -> Result<Imported, Unusable> {
    let bytes = unpack(from, limits)?;
    let tables = Tables::read(&bytes, limits)?;
    let column = tables.column(value)?;
    let (kind, unit) = tables.kinds[column];
    let mut imported = Imported { kind: tables.name(kind), unit: tables.name(unit), ..Imported::default() };
    let mut names =
        Names { tables: &tables, known: HashMap::new(), by_text: HashMap::new(), functions: Vec::new() };
    for field in Fields(&bytes) {
        let (2, value) = field? else { continue };
        sample(value.bytes()?, column, &mut names, &mut imported, limits)?;
    }
    imported.functions = names.functions;
    Ok(imported)
}

fn unpack(from: impl Read, limits: Limits) -> Result<Vec<u8>, Unusable> {
    let mut from = BufReader::new(from);
    let unreadable = |error: std::io::Error| Unusable::Unreadable(error.to_string());
    let is_gzip = from.fill_buf().map_err(unreadable)?.starts_with(&[0x1f, 0x8b]);
    let mut bytes = Vec::new();
    let read = match is_gzip {
        true => MultiGzDecoder::new(from).take(limits.bytes + 1).read_to_end(&mut bytes),
        false => from.take(limits.bytes + 1).read_to_end(&mut bytes),
    };
    read.map_err(unreadable)?;
    if bytes.len() as u64 > limits.bytes {
        return Err(Unusable::TooLarge(format!("{} MiB", limits.bytes >> 20)));
    }
    Ok(bytes)
}

/// What samples refer to. Texts are parts of the file.
#[derive(Default)]
struct Tables<'a> {
    texts: Vec<&'a [u8]>,
    /// Type and unit of each value.
    kinds: Vec<(u64, u64)>,
    default_kind: u64,
    /// Function id → text of its name.
    functions: HashMap<u64, u64>,
    /// Mapping id → text of its file's name.
    mappings: HashMap<u64, u64>,
    /// Location id → its message, read when a sample needs it.
    locations: HashMap<u64, &'a [u8]>,
}

impl<'a> Tables<'a> {
    fn read(bytes: &'a [u8], limits: Limits) -> Result<Self, Unusable> {
        let mut tables = Tables::default();
        for field in Fields(bytes) {
            let (number, value) = field?;
            match number {
                1 => {
                    let kind = numbers::<3>(value.bytes()?)?;
                    tables.kinds.push((kind[1], kind[2]));
                }
                3 => {
                    let mapping = numbers::<6>(value.bytes()?)?;
                    tables.mappings.insert(mapping[1], mapping[5]);
                }
                4 => {
                    let message = value.bytes()?;
                    tables.locations.insert(numbers::<2>(message)?[1], message);
                }
                5 => {
                    let function = numbers::<4>(value.bytes()?)?;
                    // The name, or what the linker calls it.
                    let name = if function[2] != 0 { function[2] } else { function[3] };
                    tables.functions.insert(function[1], name);
                }
                6 => tables.texts.push(value.bytes()?),
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
                    return Err(Unusable::TooLarge(format!("{} {what}", limits.entries)));
                }
            }
        }
        // An empty file is a valid message, and no profile: the format wants "" as its first text.
        if tables.kinds.is_empty() || tables.texts.first().is_none_or(|first| !first.is_empty()) {
            return Err(Unusable::Damaged);
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

    /// Which of a sample's values to take.
    fn column(&self, wanted: Option<&str>) -> Result<usize, Unusable> {
        let find = |name: &[u8]| self.kinds.iter().position(|&(kind, _)| self.text(kind) == name);
        let last = self.kinds.len() - 1;
        match wanted {
            Some(wanted) => find(wanted.as_bytes()).ok_or_else(|| Unusable::NoSuchValue {
                wanted: wanted.to_owned(),
                has: self.kinds.iter().map(|&(kind, _)| self.name(kind)).collect(),
            }),
            None => Ok(find(self.text(self.default_kind)).unwrap_or(last)),
        }
    }
}

/// The number of each field below `N`; of a field that comes twice, the last.
fn numbers<const N: usize>(message: &[u8]) -> Result<[u64; N], Damaged> {
    let mut found = [0; N];
    for field in Fields(message) {
        if let (number, Value::Number(value)) = field?
            && let Some(slot) = usize::try_from(number).ok().and_then(|number| found.get_mut(number))
        {
            *slot = value;
        }
    }
    Ok(found)
}

/// Names of functions, each once, whatever number of functions and places have it.
struct Names<'t, 'a> {
    tables: &'t Tables<'a>,
    /// Location id → its functions, innermost first.
    known: HashMap<u64, Box<[u32]>>,
    by_text: HashMap<Arc<str>, u32>,
    functions: Vec<Arc<str>>,
}

impl Names<'_, '_> {
    fn location(&mut self, id: u64) -> Result<&[u32], Unusable> {
        if !self.known.contains_key(&id) {
            let frames = self.look(id)?;
            self.known.insert(id, frames);
        }
        Ok(&self.known[&id])
    }

    fn look(&mut self, id: u64) -> Result<Box<[u32]>, Unusable> {
        let message = self.tables.locations.get(&id).copied().unwrap_or_default();
        let [_, _, mapping, address] = numbers::<4>(message)?;
        let mut frames = Vec::new();
        for field in Fields(message) {
            let (4, line) = field? else { continue };
            let function = numbers::<2>(line.bytes()?)?[1];
            let name = self.tables.functions.get(&function).copied().unwrap_or(0);
            if !self.tables.text(name).is_empty() {
                frames.push(self.number(self.tables.name(name))?);
            }
        }
        if frames.is_empty() {
            let file = self.tables.name(self.tables.mappings.get(&mapping).copied().unwrap_or(0));
            let file = file.rsplit('/').next().filter(|file| !file.is_empty()).unwrap_or("[no mapping]");
            frames.push(self.number(format!("{file}+{address:#x}"))?);
        }
        Ok(frames.into())
    }

    fn number(&mut self, name: String) -> Result<u32, Unusable> {
        if let Some(&number) = self.by_text.get(&*name) {
            return Ok(number);
        }
        let number = u32::try_from(self.functions.len()).map_err(|_| Unusable::Damaged)?;
        let name = Arc::<str>::from(name);
        self.functions.push(Arc::clone(&name));
        self.by_text.insert(name, number);
        Ok(number)
    }
}

fn sample(
    message: &[u8],
    column: usize,
    names: &mut Names<'_, '_>,
    imported: &mut Imported,
    limits: Limits,
) -> Result<(), Unusable> {
    let start = imported.frames.len();
    let (mut seen, mut value) = (0, 0);
    for field in Fields(message) {
        match field? {
            (1, ids) => {
                for id in ids.numbers() {
                    let frames = names.location(id?)?;
                    if imported.frames.len() + frames.len() > limits.frames {
                        return Err(Unusable::TooLarge(format!("{} frames", limits.frames)));
                    }
                    imported.frames.extend_from_slice(frames);
                }
            }
            (2, values) => {
                for number in values.numbers() {
                    let number = number?;
                    if seen == column {
                        value = u64::try_from(number.cast_signed()).map_err(|_| Unusable::Negative)?;
                    }
                    seen += 1;
                }
            }
            _ => {}
        }
    }
    if value == 0 {
        imported.frames.truncate(start);
        return Ok(());
    }
    if imported.stacks.len() >= limits.entries {
        return Err(Unusable::TooLarge(format!("{} samples", limits.entries)));
    }
    imported.stacks.push(Stack { start, end: imported.frames.len(), value });
    Ok(())
}

#[cfg(test)]
#[path = "pprof_tests.rs"]
mod tests;
