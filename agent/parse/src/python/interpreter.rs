//! Finds out whether a file is a Python interpreter, and of which version, by the symbols that it exports for extensions.
//!
//! Must not depend on: processes.

use std::fs::File;

use memchr::memmem;
use object::{LittleEndian as LE, elf};
use podopsy_wire::PythonLayout;
use serde::{Deserialize, Serialize};

use super::offsets::{CodeLayout, DEBUG_OFFSETS_LEN, layouts_for_version};
use crate::StackLossReason;
use crate::elf::{layout, read_at, sections};

/// Bytes of `.dynsym` or `.dynstr`. The largest tables of exported names (Chromium, LLVM) are near 10 MB.
const MAX_SECTION: u64 = 64 << 20;
/// `size_of::<Elf64_Sym>()`.
const SYMBOL_LEN: usize = 24;

/// What podopsy needs to know about a file that is a Python interpreter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// For the kernel side, which walks the frames.
    #[serde(with = "wire_bytes")]
    pub layout: PythonLayout,
    /// For user space, which reads the code objects.
    pub code: CodeLayout,
    /// Where `PyCode_Type` is: its address less the distance from addresses to offsets of the file.
    pub code_type: u64,
}

/// A record of the kernel side as its bytes.
mod wire_bytes {
    use podopsy_wire::PythonLayout;
    use serde::{Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(layout: &PythonLayout, to: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(bytemuck::bytes_of(layout), to)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<PythonLayout, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(from)?;
        bytemuck::try_pod_read_unaligned(&bytes).map_err(|_| D::Error::custom("a layout of another length"))
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
    if !has_name(&names, NAMES[0]) {
        return None;
    }
    let symbols = load(b".dynsym")?;
    let mut found = [None; NAMES.len()];
    let (symbols, _) =
        object::pod::slice_from_bytes::<elf::Sym64<LE>>(&symbols, symbols.len() / SYMBOL_LEN).ok()?;
    for symbol in symbols.iter().filter(|symbol| symbol.st_shndx.get(LE) != elf::SHN_UNDEF) {
        let at = symbol.st_name.get(LE) as usize;
        if let Some(index) = NAMES.iter().position(|name| has_name_at(&names, name, at)) {
            found[index] = Some(symbol.st_value.get(LE));
        }
    }
    Some(found)
}

/// True if a table of names holds a name at a place, and the NUL that ends it. No more than the name's own length is read:
/// in a hostile file, each of millions of symbols may have a name of megabytes.
fn has_name_at(names: &[u8], name: &[u8], at: usize) -> bool {
    names.get(at..).and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.first() == Some(&0))
}

/// True if a table of names holds a name anywhere, and the NUL that ends it.
fn has_name(names: &[u8], name: &[u8]) -> bool {
    memmem::find_iter(names, name).any(|at| names.get(at + name.len()) == Some(&0))
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
    }

    #[test]
    fn other_files_are_not_interpreters() {
        for path in ["/proc/self/exe", "/etc/passwd", "/lib64/ld-linux-x86-64.so.2"] {
            assert_eq!(detect_interpreter(&File::open(path).unwrap()), Ok(None), "{path}");
        }
    }
}
