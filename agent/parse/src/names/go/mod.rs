//! Names and lines of Go programs, from the tables that Go's own tracebacks use. `strip` does not remove them.
//!
//! The tables belong to a container and may be hostile. Each read is small and bounded, only the addresses of the
//! tables are kept, and a lookup in a damaged table finds no name. Must not depend on: processes.
//!
//! ```text
//! address ─ functab (binary search) ─→ function ─ pctab ─→ file, line, node in the tree of inlined calls ─→ names
//! ```
//!
//! The formats of Go 1.16, 1.18 and 1.20 are read (`runtime/symtab.go`, `runtime.pcHeader`). Go 1.25 still uses that of
//! 1.20.

mod image;
mod stack;
mod table;

use std::cell::Cell;
use std::fs::File;

use self::image::FileImage;
pub(crate) use self::stack::{GoFunctionKind, GoStack, read_stacks};
use self::table::GoTable;
use super::{SourceLine, Symbol, SymbolFunction};
use crate::elf::Layout;
use podopsy_demangle::shorten;
use podopsy_model::text::escape_bytes;

/// Steps for all lookups in one file together: some seconds. One lookup takes some hundred steps, but a hostile table
/// can be of any length, and there are as many addresses to look up as samples.
const MAX_STEPS: u32 = 1 << 27;
/// Inlined calls at one address. Go's compiler inlines about ten deep.
const MAX_INLINED: usize = 64;
const MAX_NAME: usize = 1024;

/// Numbers that the compiler and the runtime share (`internal/abi`); the same since 1.16.
const PCDATA_INLINED: u32 = 2;
const FUNCDATA_INLINED: u32 = 3;

/// Looks up symbols in the tables of one file.
#[derive(Debug)]
pub(super) struct GoSymbols {
    table: GoTable,
    steps_left: Cell<u32>,
}

/// A function as the table describes it. Addresses are virtual addresses of the file.
#[derive(Clone, Copy, Debug)]
struct GoFunction {
    entry: u64,
    name: u32,
    /// Offsets in `pctab` of the tables of files and lines.
    files: u32,
    lines: u32,
    /// Index in `cutab` of the first file of its compilation unit.
    unit: u32,
    /// The number of its own tables in `pctab` (PCDATA), and the address of the list of their offsets.
    tables: u32,
    tables_at: u64,
    /// The number of its FUNCDATA entries, which follow that list.
    data: u32,
}

impl GoSymbols {
    /// Finds the tables of a file. Returns none if it is not a Go program, or of a version before 1.16.
    pub fn find(file: &File, layout: &Layout) -> Option<Self> {
        let table = GoTable::find(&FileImage::new(file, layout), file)?;
        Some(Self { table, steps_left: Cell::new(MAX_STEPS) })
    }

    /// The functions at a virtual address, inlined ones first.
    pub fn symbol(&self, file: &File, layout: &Layout, address: u64) -> Option<Symbol> {
        let image = FileImage::new(file, layout);
        let function = self.function(&image, address)?;
        let mut functions = Vec::new();
        let mut at = address;
        let tree = self.tree(&image, &function);
        while let Some(tree) = tree
            && functions.len() < MAX_INLINED
            && let Some(index) = self.inlined(&image, &function, at)
        {
            let Some((name, parent)) = self.table.inlined_call(&image, tree, index) else { break };
            functions.push(self.symbol_function(&image, &function, name, at)?);
            at = function.entry.checked_add(u64::from(parent))?;
        }
        functions.push(self.symbol_function(&image, &function, function.name, at)?);
        Some(Symbol { functions })
    }

    /// The function that contains an address.
    fn function(&self, image: &FileImage<'_>, address: u64) -> Option<GoFunction> {
        let table = &self.table;
        let (mut low, mut high) = (0, table.functions);
        if address < table.entry(image, 0)?.0 || address >= table.entry(image, high)?.0 {
            return None;
        }
        // entry(low) <= address < entry(high)
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if table.entry(image, middle)?.0 <= address { low = middle } else { high = middle }
        }
        let (entry, offset) = table.entry(image, low)?;
        let at = table.pcln.checked_add(offset)?;
        let shape = table.version.function_layout();
        let bytes = image.within(table.range(), at, shape.len)?;
        let word = |at: usize| {
            bytes.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        };
        // The fields after the name have the same distance from it in all versions.
        let name = shape.name;
        Some(GoFunction {
            entry,
            name: word(name)?,
            files: word(name + 16)?,
            lines: word(name + 20)?,
            tables: word(name + 24)?,
            unit: word(name + 28)?,
            tables_at: at.checked_add(shape.len as u64)?,
            data: u32::from(*bytes.last()?),
        })
    }

    /// The value that a table of `pctab` has for an address.
    fn value(&self, image: &FileImage<'_>, table: u32, function: &GoFunction, address: u64) -> Option<u32> {
        // Offset 0 means that there is no such table.
        if table == 0 {
            return None;
        }
        let mut bytes = image.stream(self.table.range(), self.table.pcs.checked_add(u64::from(table))?);
        let (mut at, mut value) = (function.entry, -1_i32);
        let mut is_first = true;
        loop {
            self.steps_left.set(self.steps_left.get().checked_sub(1)?);
            let change = bytes.varint()?;
            if change == 0 && !is_first {
                return None;
            }
            is_first = false;
            // Zigzag: the sign is the lowest bit.
            value = value.wrapping_add((change >> 1) as i32 ^ -((change & 1) as i32));
            at = at.checked_add(u64::from(bytes.varint()?).checked_mul(self.table.quantum)?)?;
            if address < at {
                return u32::try_from(value).ok();
            }
        }
    }

    /// The address of the function's tree of inlined calls.
    fn tree(&self, image: &FileImage<'_>, function: &GoFunction) -> Option<u64> {
        (function.tables > PCDATA_INLINED && function.data > FUNCDATA_INLINED).then_some(())?;
        let tables = function.tables_at.checked_add(u64::from(function.tables).checked_mul(4)?)?;
        self.table.data(image, tables, FUNCDATA_INLINED)
    }

    /// The index of the inlined call that contains an address.
    fn inlined(&self, image: &FileImage<'_>, function: &GoFunction, address: u64) -> Option<u32> {
        let at = function.tables_at.checked_add(u64::from(PCDATA_INLINED) * 4)?;
        let table = image.u32_at(at)?;
        self.value(image, table, function, address)
    }

    /// A function by its name, with the source line at `at`.
    fn symbol_function(
        &self,
        image: &FileImage<'_>,
        function: &GoFunction,
        name: u32,
        at: u64,
    ) -> Option<SymbolFunction> {
        let name = self.table.text(image, self.table.names, name, MAX_NAME)?;
        let source = || {
            let line = self.value(image, function.lines, function, at)?;
            let number = self.value(image, function.files, function, at)?;
            let file = self.table.unit_file(image, function.unit, number)?;
            let path = self.table.text(image, self.table.files, file, MAX_NAME)?;
            Some(SourceLine { file: shorten(escape_bytes(&path)), line })
        };
        Some(SymbolFunction { name: shorten(escape_bytes(&name)), source: source() })
    }
}

#[cfg(test)]
pub(crate) mod tests;
