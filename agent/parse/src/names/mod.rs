//! Names for addresses of an ELF file: from debug information, from Go's own tables, and from symbol tables. A function
//! without a name has at least its start, from the file's unwind information.
//!
//! Nothing is kept between two calls: a caller asks for all addresses of a file together, and the memory that its tables
//! take is free again when the names are known.

mod debug_file;
mod dwarf;
mod function_start;
pub(crate) mod go;
mod mini_debug;
mod sections;
mod symbol_table;
#[cfg(test)]
pub(crate) mod tests;
mod units;

use std::fs::File;

use serde::{Deserialize, Serialize};

pub use debug_file::DebugLink;
use dwarf::DebugInfo;
use function_start::FunctionTable;
use go::GoSymbols;
#[cfg(feature = "fuzzing")]
pub(crate) use podopsy_demangle::MAX_NAME;
pub(crate) use podopsy_demangle::readable;
use sections::{DebugUnits, NameSections, SectionId};
use symbol_table::{SymbolTable, TableKind};

use crate::StackLossReason;
use crate::elf::{self, Layout};

/// Bytes of a file that are read for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameBounds {
    /// Of each symbol table with its strings.
    pub symbols: u64,
    /// Of all sections of debug information together.
    pub debug_info: u64,
}

impl NameBounds {
    /// For a worker that may take hundreds of megabytes.
    pub const LARGE: NameBounds = NameBounds { symbols: 96 << 20, debug_info: 128 << 20 };
    /// For a worker that shares the memory limit of the agent's container.
    pub const SMALL: NameBounds = NameBounds { symbols: 24 << 20, debug_info: 32 << 20 };
}

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// Escaped.
    pub file: String,
    pub line: u32,
}

/// A function, with its source line if debug information has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolFunction {
    /// Escaped; empty if unknown.
    pub name: String,
    pub source: Option<SourceLine>,
}

/// The functions at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Innermost first: the inlined functions, and last the function that contains the code. Not empty.
    pub functions: Vec<SymbolFunction>,
}

impl Symbol {
    fn bytes(&self) -> usize {
        let source =
            |function: &SymbolFunction| function.source.as_ref().map_or(0, |source| source.file.len());
        self.functions.iter().map(|function| 16 + function.name.len() + source(function)).sum()
    }

    pub fn has_name(&self) -> bool {
        self.functions.last().is_some_and(|outermost| !outermost.name.is_empty())
    }
}

/// Bytes of all names of one answer. 16,384 addresses of C++ with lines take some 3 MB.
const MAX_ANSWER_BYTES: usize = 12 << 20;

/// What to look up, and how far to read for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NameQuery {
    /// Offsets in the file.
    pub offsets: Vec<u64>,
    /// The layout by which the offsets were found. A file with another one has been written to since.
    pub layout: Layout,
    /// Whether debug information is read.
    pub debug_info: bool,
    pub bounds: NameBounds,
}

/// An address without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nameless {
    pub reason: StackLossReason,
    /// The offset in the file where its function begins, if the file's unwind information describes the function.
    pub function_start: Option<u64>,
}

/// The answer to a [`NameQuery`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundNames {
    /// For each offset, in the order of the query: its functions, or the reason why they are not known.
    pub symbols: Vec<Result<Symbol, Nameless>>,
    /// Parts of the file that were left out, because of their size or their compression.
    pub left_out: Vec<StackLossReason>,
}

/// Looks up the names of offsets of `file`. `debug_file` is the host's separate debug file; it is used if it belongs to
/// `file`. An error is a reason that holds for the whole file.
pub fn look_up(
    file: &File,
    debug_file: Option<&File>,
    query: &NameQuery,
) -> Result<FoundNames, StackLossReason> {
    // The file belongs to a container, which may have overwritten it after its segments were read.
    if elf::layout(file).as_ref() != Some(&query.layout) {
        return Err(StackLossReason::FileChanged);
    }
    let mut addresses: Vec<u64> =
        query.offsets.iter().filter_map(|&offset| query.layout.address_of(offset)).collect();
    addresses.sort_unstable();
    let units = if query.debug_info { DebugUnits::At(&addresses) } else { DebugUnits::None };
    match look_up_in(file, debug_file, query, units)? {
        Some(found) => Ok(found),
        None => Ok(look_up_in(file, debug_file, query, DebugUnits::All)?.unwrap_or_default()),
    }
}

/// Looks names up in some units of the debug information. None: another unit is needed, because one refers to it, as after
/// optimization at link time.
fn look_up_in(
    file: &File,
    debug_file: Option<&File>,
    query: &NameQuery,
    units: DebugUnits<'_>,
) -> Result<Option<FoundNames>, StackLossReason> {
    let own = NameSections::read(file, units, &query.bounds).map_err(|_| StackLossReason::FileChanged)?;
    let separate = debug_file
        .filter(|_| !own.has_debug_info())
        .filter(|debug_file| debug_file::belongs_to(debug_file, file, &query.layout))
        .and_then(|debug_file| NameSections::read(debug_file, units, &query.bounds).ok());
    let is_stripped = separate.is_none() && own.get(SectionId::Symtab).is_empty();
    let packed = is_stripped.then(|| mini_debug::read(file, &query.bounds)).flatten();
    let (packed, packed_loss) = match packed.transpose() {
        Ok(packed) => (packed, None),
        Err(reason) => (None, Some(reason)),
    };
    // The debug file has lines, and more symbols than a stripped program.
    let sources: Vec<&NameSections> = separate.iter().chain([&own]).chain(&packed).collect();
    let tables = NameTables::new(file, &query.layout, &sources);
    let left_out: Vec<StackLossReason> =
        sources.iter().filter_map(|sections| sections.loss).chain(packed_loss).collect();
    let mut symbols = if tables.is_empty() {
        let reason = left_out.first().copied().unwrap_or(StackLossReason::FileWithoutSymbols);
        vec![Err(Nameless { reason, function_start: None }); query.offsets.len()]
    } else {
        match tables.symbols(&query.offsets) {
            Some(symbols) => symbols,
            None => return Ok(None),
        }
    };
    add_function_starts(file, query, &mut symbols);
    match symbols[..] {
        // What holds for the whole file need not be asked again.
        [Err(Nameless { reason, .. }), ..] if tables.is_empty() && !symbols.iter().any(has_start) => {
            Err(reason)
        }
        _ => Ok(Some(FoundNames { symbols, left_out })),
    }
}

fn has_start(symbol: &Result<Symbol, Nameless>) -> bool {
    matches!(symbol, Err(Nameless { function_start: Some(_), .. }))
}

/// Adds where the functions without a name begin.
fn add_function_starts(file: &File, query: &NameQuery, symbols: &mut [Result<Symbol, Nameless>]) {
    if symbols.iter().all(Result::is_ok) {
        return;
    }
    let Some(table) = FunctionTable::read(file, query.bounds.symbols) else { return };
    for (symbol, &offset) in symbols.iter_mut().zip(&query.offsets) {
        let (Err(nameless), Some(address)) = (symbol, query.layout.address_of(offset)) else { continue };
        nameless.function_start = table.start_of(address).and_then(|start| query.layout.offset_of(start));
    }
}

/// Why an address has no symbol.
enum LookupFailure {
    /// The unit that has it was left out.
    UnitLeftOut,
    Lost(StackLossReason),
}

impl From<StackLossReason> for LookupFailure {
    fn from(reason: StackLossReason) -> LookupFailure {
        LookupFailure::Lost(reason)
    }
}

/// The tables of a file that have names, in the order in which they are asked.
struct NameTables<'a> {
    file: &'a File,
    layout: &'a Layout,
    debug_info: Vec<DebugInfo<'a>>,
    go: Option<GoSymbols>,
    symbols: Vec<SymbolTable<'a>>,
    /// Whether no units of debug information were left out.
    has_all_units: bool,
}

impl<'a> NameTables<'a> {
    fn new(file: &'a File, layout: &'a Layout, sources: &[&'a NameSections]) -> NameTables<'a> {
        let with_debug_info = sources.iter().filter(|sections| sections.has_debug_info());
        let debug_info = with_debug_info.filter_map(|sections| DebugInfo::new(sections)).collect();
        let mut symbols = Vec::new();
        for sections in sources.iter().filter(|sections| sections.has_symbols()) {
            let of =
                |symbols, strings, kind| SymbolTable::new(sections.get(symbols), sections.get(strings), kind);
            symbols.push(of(SectionId::Symtab, SectionId::Strtab, TableKind::Linker));
            symbols.push(of(SectionId::Dynsym, SectionId::Dynstr, TableKind::Dynamic));
        }
        let has_all_units = sources.iter().all(|sections| sections.units_left_out == 0);
        NameTables { file, layout, debug_info, go: GoSymbols::find(file, layout), symbols, has_all_units }
    }

    fn is_empty(&self) -> bool {
        self.debug_info.is_empty() && self.go.is_none() && self.symbols.is_empty()
    }

    /// The symbols at offsets, in their order. None: another unit of debug information is needed.
    fn symbols(&self, offsets: &[u64]) -> Option<Vec<Result<Symbol, Nameless>>> {
        let mut left = MAX_ANSWER_BYTES;
        let mut symbols = Vec::with_capacity(offsets.len());
        for &offset in offsets {
            let symbol = match self.symbol(offset) {
                Err(LookupFailure::UnitLeftOut) => return None,
                Err(LookupFailure::Lost(reason)) => Err(reason),
                Ok(symbol) => match left.checked_sub(symbol.bytes()) {
                    Some(rest) => {
                        left = rest;
                        Ok(symbol)
                    }
                    None => Err(StackLossReason::NamesTooLarge),
                },
            };
            symbols.push(symbol.map_err(|reason| Nameless { reason, function_start: None }));
        }
        Some(symbols)
    }

    fn symbol(&self, offset: u64) -> Result<Symbol, LookupFailure> {
        let address = self.layout.address_of(offset).ok_or(StackLossReason::OffsetOutsideSegments)?;
        let mut lines = None;
        for debug_info in &self.debug_info {
            let functions = match debug_info.functions_at(address) {
                Err(_) if !self.has_all_units => return Err(LookupFailure::UnitLeftOut),
                found => found.unwrap_or_default(),
            };
            if !functions.is_empty() {
                let symbol = Symbol { functions };
                if symbol.has_name() {
                    return Ok(symbol);
                }
                lines.get_or_insert(symbol);
            }
        }
        let named = self.go_symbol(address).or_else(|| self.plain_symbol(address));
        add_name(lines, named).ok_or(StackLossReason::SymbolNotFound.into())
    }

    /// The symbol from Go's own tables, which have lines, too.
    fn go_symbol(&self, address: u64) -> Option<Symbol> {
        self.go.as_ref()?.symbol(self.file, self.layout, address)
    }

    fn plain_symbol(&self, address: u64) -> Option<Symbol> {
        let name = self.symbols.iter().find_map(|table| table.name_at(address))?;
        Some(Symbol { functions: vec![SymbolFunction { name: readable(name), source: None }] })
    }
}

/// Adds the name of another table to lines from debug information without names.
///
/// Names can be in a file that is not read (dwz, `.gnu_debugaltlink`): then the lines are good, and the name is in the
/// symbol table.
fn add_name(lines: Option<Symbol>, named: Option<Symbol>) -> Option<Symbol> {
    match (lines, named) {
        (Some(mut lines), Some(mut named)) => {
            let (line, name) = lines.functions.pop().zip(named.functions.pop())?;
            lines.functions.push(SymbolFunction { source: line.source, ..name });
            Some(lines)
        }
        (lines, named) => named.or(lines),
    }
}
