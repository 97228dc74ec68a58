//! Reads the performance counters that a HotSpot JVM keeps in a file that it maps, `hsperfdata_USER/PID` in `/tmp`.
//!
//! A prologue of 32 bytes, then entries of a name and a value (HotSpot's `PerfDataPrologue` and `PerfDataEntry`, which `jstat`
//! reads, too). The bytes come from the container's memory: every offset is checked, and the number of entries is bounded.

use std::collections::HashMap;

use podopsy_model::heap::HeapFigures;
use podopsy_model::text;

const MAGIC: [u8; 4] = [0xca, 0xfe, 0xc0, 0xc0];
const LITTLE_ENDIAN: u8 = 1;
const PROLOGUE: usize = 32;
/// A JVM has some 200.
const ENTRIES_MAX: usize = 2048;
const ENTRY_HEADER: usize = 20;
const TEXT_MAX: usize = 128;
const OPTIONS_MAX: usize = 16;
/// Generations, spaces and collectors that are looked for.
const PARTS_MAX: u8 = 4;
/// The options that set sizes. Others may have secrets in them.
const SIZE_OPTIONS: [&str; 14] = [
    "-Xmx",
    "-Xms",
    "-Xmn",
    "-Xss",
    "-XX:MaxHeapSize=",
    "-XX:MaxRAM=",
    "-XX:MaxRAMPercentage=",
    "-XX:InitialRAMPercentage=",
    "-XX:MinRAMPercentage=",
    "-XX:MaxRAMFraction=",
    "-XX:MaxDirectMemorySize=",
    "-XX:MaxMetaspaceSize=",
    "-XX:ReservedCodeCacheSize=",
    "-XX:+Use",
];

/// What the counters say at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PerfData {
    /// Name and version of the virtual machine, escaped.
    pub runtime: String,
    /// Without a time and a trend.
    pub figures: HeapFigures,
    /// Escaped.
    pub options: Vec<String>,
}

/// None: these are no counters of a JVM that has started, or of a machine with the other byte order.
pub fn parse(bytes: &[u8]) -> Option<PerfData> {
    let entries = Entries::read(bytes)?;
    let committed = entries.generations("capacity").fold(0, u64::saturating_add);
    let maxima = || entries.generations("maxCapacity");
    // Each generation of G1 may take the whole heap.
    let max = match entries.text("sun.gc.policy.name") {
        Some(b"GarbageFirst") => maxima().max(),
        _ => maxima().reduce(u64::saturating_add),
    };
    let frequency = entries.number("sun.os.hrt.frequency").filter(|&hz| hz > 0)?;
    let ticks = entries.collectors("time").fold(0, u64::saturating_add);
    let figures = HeapFigures {
        used_bytes: entries.spaces("used").fold(0, u64::saturating_add),
        committed_bytes: committed,
        max_bytes: max.filter(|&max| max > 0),
        metaspace_bytes: entries.number("sun.gc.metaspace.capacity"),
        threads: entries.number("java.threads.live"),
        collections: entries.collectors("invocations").fold(0, u64::saturating_add),
        collection_seconds: ticks as f64 / frequency as f64,
        ..HeapFigures::default()
    };
    Some(PerfData { runtime: entries.runtime(), figures, options: entries.options() })
}

/// Name and value of each counter.
struct Entries<'a>(HashMap<&'a [u8], Value<'a>>);

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Text(&'a [u8]),
}

impl<'a> Entries<'a> {
    fn read(bytes: &'a [u8]) -> Option<Entries<'a>> {
        let prologue = bytes.get(..PROLOGUE)?;
        // The eighth byte says that all entries are there.
        if prologue[..4] != MAGIC || prologue[4] != LITTLE_ENDIAN || prologue[7] != 1 {
            return None;
        }
        let (mut at, count) = (offset(bytes, 24)?, offset(bytes, 28)?);
        let mut all = HashMap::new();
        for _ in 0..count.min(ENTRIES_MAX) {
            let length = offset(bytes, at)?;
            let entry = bytes.get(at..at.checked_add(length)?)?;
            all.extend(parse_entry(entry));
            at += length.max(ENTRY_HEADER);
        }
        Some(Entries(all))
    }

    fn find(&self, name: &str) -> Option<Value<'a>> {
        self.0.get(name.as_bytes()).copied()
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.find(name)? {
            Value::Number(number) => Some(number),
            Value::Text(_) => None,
        }
    }

    fn text(&self, name: &str) -> Option<&'a [u8]> {
        match self.find(name)? {
            Value::Text(text) => Some(text),
            Value::Number(_) => None,
        }
    }

    fn generations(&self, of: &str) -> impl Iterator<Item = u64> {
        (0..PARTS_MAX).filter_map(move |n| self.number(&format!("sun.gc.generation.{n}.{of}")))
    }

    fn spaces(&self, of: &str) -> impl Iterator<Item = u64> {
        let names = (0..PARTS_MAX).flat_map(|n| (0..PARTS_MAX).map(move |space| (n, space)));
        names.filter_map(move |(n, space)| self.number(&format!("sun.gc.generation.{n}.space.{space}.{of}")))
    }

    fn collectors(&self, of: &str) -> impl Iterator<Item = u64> {
        (0..PARTS_MAX).filter_map(move |n| self.number(&format!("sun.gc.collector.{n}.{of}")))
    }

    fn runtime(&self) -> String {
        let part = |name| self.text(name).map(shown).unwrap_or_default();
        let parts = [part("java.property.java.vm.name"), part("java.property.java.vm.version")];
        parts.join(" ").trim().to_owned()
    }

    fn options(&self) -> Vec<String> {
        let all = self.text("java.rt.vmArgs").unwrap_or_default();
        let words = all.split(|&byte| byte == b' ');
        let sets_size = |word: &&[u8]| SIZE_OPTIONS.iter().any(|option| word.starts_with(option.as_bytes()));
        words.filter(sets_size).take(OPTIONS_MAX).map(shown).collect()
    }
}

fn shown(bytes: &[u8]) -> String {
    text::escape_bytes(&bytes[..bytes.len().min(TEXT_MAX)])
}

/// An `i32` that is an offset, a length or a count.
fn offset(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(i32::from_le_bytes(word.try_into().ok()?)).ok()
}

/// A number (type `J`), or text (an array of type `B`). Others are skipped.
fn parse_entry(entry: &[u8]) -> Option<(&[u8], Value<'_>)> {
    let (name, length, data) = (offset(entry, 4)?, offset(entry, 8)?, offset(entry, 16)?);
    let name = until_nul(entry.get(name..data)?);
    let value = match (entry.get(12)?, length) {
        (b'J', 0) => {
            let number = i64::from_le_bytes(entry.get(data..data.checked_add(8)?)?.try_into().ok()?);
            Value::Number(u64::try_from(number).ok()?)
        }
        (b'B', 1..) => Value::Text(until_nul(entry.get(data..data.checked_add(length)?)?)),
        _ => return None,
    };
    Some((name, value))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
#[path = "perf_data_tests.rs"]
mod tests;
