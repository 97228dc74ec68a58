//! Finds out whether a file is a Python interpreter, and of which version, by the symbols that it exports for extensions.
//!
//! Must not depend on: processes.

use std::fs::File;
use std::sync::{Arc, Mutex};

use memchr::memmem;
use object::{LittleEndian as LE, elf};
use podopsy_wire::{PYTHONS_MAX, PythonLayout};

use super::offsets::{CodeLayout, DEBUG_OFFSETS_LEN, layouts_for_version};
use crate::StackLossReason;
use crate::symbolize::elf::{layout, read_at, sections};
use podopsy_system::sync::lock;

/// Bytes of `.dynsym` or `.dynstr`. The largest tables of exported names (Chromium, LLVM) are near 10 MB.
const MAX_SECTION: u64 = 64 << 20;
/// `size_of::<Elf64_Sym>()`.
const SYMBOL_LEN: usize = 24;

/// What podopsy needs to know about a file that is a Python interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// For the kernel side, which walks the frames.
    pub layout: PythonLayout,
    /// For user space, which reads the code objects.
    pub(super) code: CodeLayout,
    /// Where `PyCode_Type` is: its address less the distance from addresses to offsets of the file.
    pub(super) code_type: u64,
}

/// The interpreters that were found, by the number that the kernel side uses for them. A number is never reused.
#[derive(Clone, Debug, Default)]
pub struct InterpreterRegistry(Arc<Mutex<Vec<Interpreter>>>);

impl InterpreterRegistry {
    /// The number of an interpreter, which is added if it is new. None if the registry is full.
    pub(crate) fn number(&self, interpreter: &Interpreter) -> Option<u32> {
        let mut all = lock(&self.0);
        let index = all.iter().position(|other| other == interpreter).unwrap_or(all.len());
        // Numbers begin at 1: on the kernel side, 0 stands for a file that is no interpreter.
        if index + 1 >= PYTHONS_MAX {
            return None;
        }
        if index == all.len() {
            all.push(interpreter.clone());
        }
        u32::try_from(index + 1).ok()
    }

    pub(super) fn get(&self, number: u32) -> Option<Interpreter> {
        let all = lock(&self.0);
        all.get((number as usize).checked_sub(1)?).cloned()
    }
}

/// The symbols that are looked up in `.dynsym`.
const NAMES: [&[u8]; 5] =
    [b"_PyRuntime", b"PyCode_Type", b"_PyEval_EvalFrameDefault", b"Py_Version", b"PyIter_Send"];

/// Describes the interpreter if the file is one. An error is the reason why the interpreter's functions will be missing.
pub fn detect_interpreter(file: &File) -> Result<Option<Interpreter>, StackLossReason> {
    let Some(found) = exported_addresses(file) else { return Ok(None) };
    let [Some(runtime), code_type, evaluate, version, send] = found else { return Ok(None) };
    let (Some(code_type), Some(evaluate)) = (code_type, evaluate) else {
        return Err(StackLossReason::PythonSymbols);
    };
    let layout = layout(file).ok_or(StackLossReason::PythonSymbols)?;
    let offset_of = |address| layout.offset_of(address);
    let version = match version {
        Some(address) => {
            let bytes = offset_of(address).and_then(|offset| read_at(file, offset, 8).ok());
            let bytes = bytes.ok_or(StackLossReason::PythonVersion)?;
            (bytes[3], bytes[2])
        }
        // `Py_Version` was added in 3.11, `PyIter_Send` in 3.10.
        None if send.is_some() => (3, 10),
        None => return Err(StackLossReason::PythonVersion),
    };
    let start = offset_of(runtime).and_then(|offset| read_at(file, offset, DEBUG_OFFSETS_LEN).ok());
    let start = start.unwrap_or_default();
    let (mut python_layout, code) = layouts_for_version(version, &start)?;
    let text = offset_of(evaluate).ok_or(StackLossReason::PythonSymbols)?;
    // For code, `address - to_file` is its offset in the file.
    let to_file = evaluate.wrapping_sub(text);
    python_layout.runtime = runtime.wrapping_sub(to_file);
    let code_type = code_type.wrapping_sub(to_file);
    Ok(Some(Interpreter { layout: python_layout, code, code_type }))
}

/// The addresses of [`NAMES`]. None if the file does not export the first of them.
fn exported_addresses(file: &File) -> Option<[Option<u64>; NAMES.len()]> {
    let table = sections(file);
    let load = |name: &[u8]| {
        let section = table.iter().find(|section| section.name == name && section.size <= MAX_SECTION)?;
        read_at(file, section.offset, usize::try_from(section.size).ok()?).ok()
    };
    let names = load(b".dynstr")?;
    // Most files are no interpreters: their names are enough to tell, and their symbols are not read.
    find_name(&names, NAMES[0])?;
    let places = NAMES.map(|name| find_name(&names, name));
    let symbols = load(b".dynsym")?;
    let mut found = [None; NAMES.len()];
    let (symbols, _) =
        object::pod::slice_from_bytes::<elf::Sym64<LE>>(&symbols, symbols.len() / SYMBOL_LEN).ok()?;
    for symbol in symbols.iter().filter(|symbol| symbol.st_shndx.get(LE) != elf::SHN_UNDEF) {
        let at = symbol.st_name.get(LE) as usize;
        let index =
            places.iter().position(|place| place.is_some_and(|place| is_same_name(&names, place, at)));
        if let Some(index) = index {
            found[index] = Some(symbol.st_value.get(LE));
        }
    }
    Some(found)
}

/// True if both places hold the same name. Linkers let names share their ends, so the same text can stand at several
/// places.
fn is_same_name(names: &[u8], place: usize, at: usize) -> bool {
    let text = |at: usize| names.get(at..).and_then(|rest| rest.split(|&byte| byte == 0).next());
    at == place || (at < names.len() && text(at) == text(place))
}

/// Where a table of names holds a name and the NUL that ends it.
fn find_name(names: &[u8], name: &[u8]) -> Option<usize> {
    memmem::find_iter(names, name).find(|at| names.get(at + name.len()) == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_python_is_recognised_and_gets_one_number() {
        let python = File::open("/usr/bin/python3.11").unwrap();
        let python = detect_interpreter(&python).unwrap().expect("an interpreter");
        assert!(python.code.has_locations && !python.code.entry_is_shim);
        assert_ne!(python.layout.runtime, 0);
        let interpreters = InterpreterRegistry::default();
        assert_eq!(interpreters.number(&python), Some(1));
        assert_eq!(interpreters.number(&python), Some(1));
        assert_eq!(interpreters.get(1), Some(python));
        assert!(interpreters.get(0).is_none() && interpreters.get(2).is_none());
    }

    #[test]
    fn other_files_are_not_interpreters() {
        for path in ["/proc/self/exe", "/etc/passwd", "/lib64/ld-linux-x86-64.so.2"] {
            assert_eq!(detect_interpreter(&File::open(path).unwrap()), Ok(None), "{path}");
        }
    }

    #[test]
    fn interpreters_beyond_the_kernel_sides_bound_get_no_number() {
        let python = File::open("/usr/bin/python3.11").unwrap();
        let python = detect_interpreter(&python).unwrap().unwrap();
        let interpreters = InterpreterRegistry::default();
        let numbers: Vec<_> = (0..100)
            .map(|code_type| interpreters.number(&Interpreter { code_type, ..python.clone() }))
            .collect();
        assert_eq!(numbers[PYTHONS_MAX - 2], Some(PYTHONS_MAX as u32 - 1));
        assert!(numbers[PYTHONS_MAX - 1..].iter().all(Option::is_none));
    }
}
