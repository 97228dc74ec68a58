//! Names and lines of Go programs, from the tables that Go's own tracebacks use: they stay when a binary is stripped.
//!
//! Must not know: processes, blazesym. The tables are the container's: each read is small and bounded, nothing is kept
//! but where things are, and what makes no sense is no name.
//!
//! ```text
//! address ─ functab (binary search) ─→ function ─ pctab ─→ file, line, place in the tree of inlined calls ─→ names
//! ```
//!
//! The formats are those that Go 1.16, 1.18 and 1.20 brought (`runtime/symtab.go`, `runtime.pcHeader`); 1.20's is the
//! newest as of Go 1.25.

mod find;
mod image;
mod stack;

use std::cell::Cell;
use std::fs::File;

use self::find::Table;
use self::image::Image;
pub(crate) use self::stack::{Stack, stacks};
use super::elf::Layout;
use super::resolver::{Named, Symbol, shorten};
use podopsy_model::text::escape_bytes;

/// Steps that one file may cost for good, some seconds: a lookup takes some hundred. A hostile table is as long as it
/// likes, and there are as many addresses to look up as there are samples.
const MAX_STEPS: u32 = 1 << 27;
/// Go's compiler inlines some ten deep.
const MAX_INLINED: usize = 64;
const MAX_NAME: usize = 1024;

/// Numbers that compiler and runtime agree on (`internal/abi`): the same since 1.16.
const PCDATA_INLINED: u32 = 2;
const FUNCDATA_INLINED: u32 = 3;

/// The tables of one file.
#[derive(Debug)]
pub(super) struct Go {
    table: Table,
    steps_left: Cell<u32>,
}

/// A function as the table describes it. Addresses are the file's own.
#[derive(Clone, Copy, Debug)]
struct Function {
    entry: u64,
    name: u32,
    /// Where in `pctab` the numbers of files and lines are.
    files: u32,
    lines: u32,
    /// The first entry of its compilation unit in `cutab`.
    unit: u32,
    /// Where its own numbers of `pctab` are: how many, and at what address; then those of other data.
    tables: u32,
    tables_at: u64,
    data: u32,
}

impl Go {
    /// None: no Go program, or one from before 1.16.
    pub fn find(file: &File, layout: &Layout) -> Option<Self> {
        let table = Table::find(&Image::new(file, layout), file)?;
        Some(Self { table, steps_left: Cell::new(MAX_STEPS) })
    }

    /// The functions at an address, inlined ones first.
    pub fn symbol(&self, file: &File, layout: &Layout, address: u64) -> Option<Symbol> {
        let image = Image::new(file, layout);
        let function = self.function(&image, address)?;
        let mut functions = Vec::new();
        let mut at = address;
        let tree = self.tree(&image, &function);
        while let Some(tree) = tree
            && functions.len() < MAX_INLINED
            && let Some(index) = self.inlined(&image, &function, at)
        {
            let Some((name, parent)) = self.table.inlined_call(&image, tree, index) else { break };
            functions.push(self.named(&image, &function, name, at)?);
            at = function.entry.checked_add(u64::from(parent))?;
        }
        functions.push(self.named(&image, &function, function.name, at)?);
        Some(Symbol { functions })
    }

    /// The function that an address is in.
    fn function(&self, image: &Image<'_>, address: u64) -> Option<Function> {
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
        let shape = table.version.function();
        let bytes = image.within(table.range(), at, shape.len)?;
        let word = |at: usize| {
            bytes.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        };
        // Everything after the name stands at the same distance from it.
        let name = shape.name;
        Some(Function {
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

    /// The number that a table of `pctab` has for an address.
    fn value(&self, image: &Image<'_>, table: u32, function: &Function, address: u64) -> Option<u32> {
        // Offset 0 says that there is no such table.
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

    /// Where the function's tree of inlined calls is.
    fn tree(&self, image: &Image<'_>, function: &Function) -> Option<u64> {
        (function.tables > PCDATA_INLINED && function.data > FUNCDATA_INLINED).then_some(())?;
        let tables = function.tables_at.checked_add(u64::from(function.tables).checked_mul(4)?)?;
        self.table.data(image, tables, FUNCDATA_INLINED)
    }

    /// The inlined call that an address is in.
    fn inlined(&self, image: &Image<'_>, function: &Function, address: u64) -> Option<u32> {
        let at = function.tables_at + u64::from(PCDATA_INLINED) * 4;
        let table = image.word(at)?;
        self.value(image, table, function, address)
    }

    fn named(&self, image: &Image<'_>, function: &Function, name: u32, at: u64) -> Option<Named> {
        let name = self.table.text(image, self.table.names, name, MAX_NAME)?;
        let source = || {
            let line = self.value(image, function.lines, function, at)?;
            let number = self.value(image, function.files, function, at)?;
            let file = self.table.unit_file(image, function.unit, number)?;
            let path = self.table.text(image, self.table.files, file, MAX_NAME)?;
            Some((shorten(escape_bytes(&path)).into(), line))
        };
        Some(Named { function: shorten(escape_bytes(&name)), source: source() })
    }
}

#[cfg(test)]
pub(crate) mod tests;
