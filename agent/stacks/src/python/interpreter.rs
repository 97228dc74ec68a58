//! Is a file a Python interpreter, and which: by the symbols that it exports for its extensions.
//!
//! Must not know: processes.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use memchr::memmem;
use object::{LittleEndian as LE, elf};
use podopsy_wire::{PYTHONS_MAX, PythonLayout};

use super::offsets::{self, CodeLayout, DEBUG_OFFSETS};
use crate::symbolize::elf::{layout, read_at, sections};

/// The largest tables of exported names (Chromium, LLVM) are near 10 MB.
const MAX_SYMBOLS: u64 = 64 << 20;
const SYMBOL: usize = 24;

/// A Python interpreter's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// For the kernel side.
    pub layout: PythonLayout,
    pub(super) code: CodeLayout,
    /// `PyCode_Type` is at this less what leads from an address to an offset in the file.
    pub(super) code_type: u64,
}

/// The interpreters that were met, by the number that the kernel side knows them by. Numbers are never given twice.
#[derive(Clone, Debug, Default)]
pub struct Interpreters(Arc<Mutex<Vec<Interpreter>>>);

impl Interpreters {
    /// The number of an interpreter, which may be new; none: there is no room.
    pub(crate) fn number(&self, interpreter: &Interpreter) -> Option<u32> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = all.iter().position(|other| other == interpreter).unwrap_or(all.len());
        // 0 is no interpreter.
        if index + 1 >= PYTHONS_MAX {
            return None;
        }
        if index == all.len() {
            all.push(interpreter.clone());
        }
        u32::try_from(index + 1).ok()
    }

    pub(super) fn get(&self, number: u32) -> Option<Interpreter> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get((number as usize).checked_sub(1)?).cloned()
    }
}

/// What is looked for in `.dynsym`.
const NAMES: [&[u8]; 5] =
    [b"_PyRuntime", b"PyCode_Type", b"_PyEval_EvalFrameDefault", b"Py_Version", b"PyIter_Send"];

/// The interpreter that the file is; none: it is no interpreter. An error, a counter's name, says why Python's functions
/// will not be seen in it.
pub fn interpreter(file: &File) -> Result<Option<Interpreter>, &'static str> {
    let Some(found) = exported(file) else { return Ok(None) };
    let [Some(runtime), code_type, evaluate, version, send] = found else { return Ok(None) };
    let (Some(code_type), Some(evaluate)) = (code_type, evaluate) else { return Err("python_symbols") };
    let layout = layout(file).ok_or("python_symbols")?;
    let at = |address| layout.offset_of(address);
    let version = match version {
        Some(address) => {
            let bytes =
                at(address).and_then(|offset| read_at(file, offset, 8).ok()).ok_or("python_version")?;
            (bytes[3], bytes[2])
        }
        // `Py_Version` came with 3.11, PyIter_Send with 3.10.
        None if send.is_some() => (3, 10),
        None => return Err("python_version"),
    };
    let start = at(runtime).and_then(|offset| read_at(file, offset, DEBUG_OFFSETS).ok()).unwrap_or_default();
    let (mut offsets, code) = offsets::offsets(version, &start)?;
    let text = at(evaluate).ok_or("python_symbols")?;
    // Code at `address` is loaded where `address - (evaluate - text)` is an offset in the file.
    let to_file = evaluate.wrapping_sub(text);
    offsets.runtime = runtime.wrapping_sub(to_file);
    Ok(Some(Interpreter { layout: offsets, code, code_type: code_type.wrapping_sub(to_file) }))
}

/// The addresses of [`NAMES`]; none: the file exports nothing of the kind.
fn exported(file: &File) -> Option<[Option<u64>; NAMES.len()]> {
    let table = sections(file);
    let load = |name: &[u8]| {
        let section = table.iter().find(|section| section.name == name && section.size <= MAX_SYMBOLS)?;
        read_at(file, section.offset, usize::try_from(section.size).ok()?).ok()
    };
    let names = load(b".dynstr")?;
    // Most files are none, and need no look at their symbols.
    find(&names, NAMES[0])?;
    let places = NAMES.map(|name| find(&names, name));
    let symbols = load(b".dynsym")?;
    let mut found = [None; NAMES.len()];
    let (symbols, _) =
        object::pod::slice_from_bytes::<elf::Sym64<LE>>(&symbols, symbols.len() / SYMBOL).ok()?;
    for symbol in symbols.iter().filter(|symbol| symbol.st_shndx.get(LE) != elf::SHN_UNDEF) {
        let at = symbol.st_name.get(LE) as usize;
        let index = places.iter().position(|place| place.is_some_and(|place| named(&names, place, at)));
        if let Some(index) = index {
            found[index] = Some(symbol.st_value.get(LE));
        }
    }
    Some(found)
}

/// The same name: linkers share ends of names, so that there may be several places with the same text.
fn named(names: &[u8], place: usize, at: usize) -> bool {
    let text = |at: usize| names.get(at..).and_then(|rest| rest.split(|&byte| byte == 0).next());
    at == place || (at < names.len() && text(at) == text(place))
}

/// Where a name, with the NUL behind it, is in a table of names.
fn find(names: &[u8], name: &[u8]) -> Option<usize> {
    memmem::find_iter(names, name).find(|at| names.get(at + name.len()) == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_python_is_one_and_its_files_agree() {
        let python = File::open("/usr/bin/python3.11").unwrap();
        let python = interpreter(&python).unwrap().expect("it is an interpreter");
        assert!(python.code.has_locations && !python.code.entry_is_shim);
        assert_ne!(python.layout.runtime, 0);
        let interpreters = Interpreters::default();
        assert_eq!(interpreters.number(&python), Some(1));
        assert_eq!(interpreters.number(&python), Some(1));
        assert_eq!(interpreters.get(1), Some(python));
        assert!(interpreters.get(0).is_none() && interpreters.get(2).is_none());
    }

    #[test]
    fn other_files_are_none() {
        for path in ["/proc/self/exe", "/etc/passwd", "/lib64/ld-linux-x86-64.so.2"] {
            assert_eq!(interpreter(&File::open(path).unwrap()), Ok(None), "{path}");
        }
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let python = interpreter(&File::open("/usr/bin/python3.11").unwrap()).unwrap().unwrap();
        let interpreters = Interpreters::default();
        let numbers: Vec<_> = (0..100)
            .map(|code_type| interpreters.number(&Interpreter { code_type, ..python.clone() }))
            .collect();
        assert_eq!(numbers[PYTHONS_MAX - 2], Some(PYTHONS_MAX as u32 - 1));
        assert!(numbers[PYTHONS_MAX - 1..].iter().all(Option::is_none));
    }
}
