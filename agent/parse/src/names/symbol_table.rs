//! Finds the symbol at an address in a symbol table (`.symtab`, `.dynsym`; `Elf64_Sym` in the ELF specification).
//!
//! Must not depend on: files, demangling.

use memchr::memchr;
use object::{LittleEndian as LE, elf};

/// Symbols before an address that are examined for one that contains it. Symbols overlap where a function has several
/// names, or several entry points.
const MAX_CANDIDATES: usize = 64;

/// Which table it is: that of the linker is complete, the dynamic one has exported names alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableKind {
    Linker,
    Dynamic,
}

/// The symbols of a table in the order of their addresses.
pub(super) struct SymbolTable<'a> {
    symbols: &'a [elf::Sym64<LE>],
    strings: &'a [u8],
    kind: TableKind,
    /// Address and index in `symbols`.
    by_address: Vec<(u64, u32)>,
}

impl<'a> SymbolTable<'a> {
    pub fn new(symbols: &'a [u8], strings: &'a [u8], kind: TableKind) -> SymbolTable<'a> {
        let count = symbols.len() / size_of::<elf::Sym64<LE>>();
        let symbols = object::pod::slice_from_bytes(symbols, count).map_or(&[][..], |(symbols, _)| symbols);
        let mut by_address: Vec<(u64, u32)> = symbols
            .iter()
            .zip(0..)
            .filter(|(symbol, _)| may_name_code(symbol))
            .map(|(symbol, index)| (symbol.st_value.get(LE), index))
            .collect();
        by_address.sort_unstable();
        SymbolTable { symbols, strings, kind, by_address }
    }

    /// The name of the nearest symbol that contains an address.
    pub fn name_at(&self, address: u64) -> Option<&'a [u8]> {
        let after = self.by_address.partition_point(|(start, _)| *start <= address);
        let mut best: Option<(u64, &elf::Sym64<LE>)> = None;
        for &(start, index) in self.by_address[..after].iter().rev().take(MAX_CANDIDATES) {
            if best.is_some_and(|(best_start, _)| start < best_start) {
                break;
            }
            let symbol = &self.symbols[index as usize];
            if self.contains(symbol, start, address) && best.is_none_or(|(_, best)| rank(symbol) > rank(best))
            {
                best = Some((start, symbol));
            }
        }
        self.name(best?.1)
    }

    /// A symbol without a size is taken to reach to the next one; but a dynamic table has too few symbols for that.
    fn contains(&self, symbol: &elf::Sym64<LE>, start: u64, address: u64) -> bool {
        match (symbol.st_size.get(LE), self.kind) {
            (0, TableKind::Linker) => true,
            (0, TableKind::Dynamic) => address == start,
            (size, _) => address - start < size,
        }
    }

    fn name(&self, symbol: &elf::Sym64<LE>) -> Option<&'a [u8]> {
        let rest = self.strings.get(symbol.st_name.get(LE) as usize..)?;
        let name = &rest[..memchr(0, rest)?];
        (!name.is_empty()).then_some(name)
    }
}

fn may_name_code(symbol: &elf::Sym64<LE>) -> bool {
    let kind = symbol.st_info.0 & 0xf;
    let is_code = [elf::STT_FUNC.0, elf::STT_GNU_IFUNC.0, elf::STT_NOTYPE.0].contains(&kind);
    is_code && symbol.st_shndx.get(LE) != elf::SHN_UNDEF && symbol.st_name.get(LE) != 0
}

/// Of symbols with the same address, the one with the highest rank gives the name: a function before a label, a size
/// before none, a global name before an alias.
fn rank(symbol: &elf::Sym64<LE>) -> (bool, bool, u8) {
    let binding = match symbol.st_info.0 >> 4 {
        binding if binding == elf::STB_GLOBAL.0 => 2,
        binding if binding == elf::STB_WEAK.0 => 1,
        _ => 0,
    };
    (symbol.st_info.0 & 0xf != elf::STT_NOTYPE.0, symbol.st_size.get(LE) > 0, binding)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNC: u8 = 2;
    const GLOBAL_FUNC: u8 = 0x12;

    /// name offset, info, other, section index, value, size
    fn symbol(name: u32, info: u8, value: u64, size: u64) -> Vec<u8> {
        let mut bytes = name.to_le_bytes().to_vec();
        bytes.extend([info, 0, 1, 0]);
        bytes.extend(value.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes
    }

    const STRINGS: &[u8] = b"\0main\0helper\0alias\0label\0";

    fn name_at(kind: TableKind, symbols: &[Vec<u8>], address: u64) -> Option<String> {
        let bytes = symbols.concat();
        let table = SymbolTable::new(&bytes, STRINGS, kind);
        table.name_at(address).map(|name| String::from_utf8(name.to_vec()).unwrap())
    }

    #[test]
    fn an_address_has_the_name_of_the_nearest_symbol_that_contains_it() {
        let symbols = [symbol(6, FUNC, 0x140, 0x10), symbol(1, FUNC, 0x100, 0x100)];
        let at = |address| name_at(TableKind::Linker, &symbols, address);
        assert_eq!(at(0x100).as_deref(), Some("main"));
        assert_eq!(at(0x14f).as_deref(), Some("helper"));
        // Behind the inner one, the outer one goes on.
        assert_eq!(at(0x150).as_deref(), Some("main"));
        assert_eq!((at(0xff), at(0x200)), (None, None));
    }

    #[test]
    fn a_function_with_several_names_has_the_global_one() {
        let symbols = [symbol(13, FUNC, 0x100, 8), symbol(1, GLOBAL_FUNC, 0x100, 8), symbol(19, 0, 0x100, 0)];
        assert_eq!(name_at(TableKind::Linker, &symbols, 0x104).as_deref(), Some("main"));
    }

    #[test]
    fn a_symbol_without_a_size_reaches_to_the_next_one_in_the_linkers_table_only() {
        let symbols = [symbol(1, FUNC, 0x100, 0), symbol(6, FUNC, 0x180, 8)];
        assert_eq!(name_at(TableKind::Linker, &symbols, 0x17f).as_deref(), Some("main"));
        assert_eq!(name_at(TableKind::Dynamic, &symbols, 0x17f), None);
        assert_eq!(name_at(TableKind::Dynamic, &symbols, 0x100).as_deref(), Some("main"));
    }

    #[test]
    fn names_outside_of_the_strings_are_no_names() {
        let symbols = [symbol(9999, FUNC, 0x100, 8), symbol(STRINGS.len() as u32, FUNC, 0x200, 8)];
        assert_eq!(name_at(TableKind::Linker, &symbols, 0x100), None);
        assert_eq!(name_at(TableKind::Linker, &symbols, 0x200), None);
    }
}
