//! Reads the name, the file and the table of lines of a code object from a process's memory.
//!
//! Must not depend on: samples, stacks. The process controls all of these bytes: reads are bounded, and texts are escaped
//! here.

use crate::{StackLossReason, tenant};
use podopsy_model::text;
use podopsy_opener::{FileHandle, OpenError, Openers, Target};
use podopsy_worker::CodeLayout;

/// Bytes of an escaped name that are kept; `…` stands for the rest. A stack has up to 128 names.
const MAX_NAME: usize = 256;
/// Some 30,000 instructions in one function.
const MAX_LINES: usize = 64 << 10;
/// The bytes at the start of a code object that are read.
const CODE_OBJECT_LEN: usize = 208;
/// The bytes at the start of a `str` or `bytes` object that are read.
const HEADER_LEN: usize = 80;

/// Bits of `PyASCIIObject.state`, the same from 3.10 to 3.13.
const STATE_KIND_SHIFT: u32 = 2;
const STATE_COMPACT: u32 = 1 << 5;
const STATE_ASCII: u32 = 1 << 6;

/// A function as its code object describes it, with its texts escaped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PythonFunction {
    pub name: String,
    pub file: String,
    pub first_line: u32,
    /// `co_linetable`; empty if it is too large or not readable.
    pub lines: Vec<u8>,
    pub has_locations: bool,
}

/// Tells a code object from another that was later allocated at the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeFingerprint {
    file: u64,
    name: u64,
    lines: u64,
    first_line: u32,
}

/// A process's memory. The handle stays with the address space that was current when it was opened, so after an exec
/// it does not show the new program's memory.
///
/// An opener reads it: a page may lie on a file whose file system does not answer.
#[derive(Debug)]
pub(super) struct ProcessMemory {
    openers: Openers,
    target: Target,
    memory: FileHandle,
}

impl ProcessMemory {
    pub fn open(openers: &Openers, pid: u32) -> Result<ProcessMemory, StackLossReason> {
        let target = Target { tenant: tenant::of_process(pid), pid, may_hang: false };
        let memory = openers.open_memory(target).map_err(loss)?;
        Ok(ProcessMemory { openers: openers.clone(), target, memory })
    }

    /// Reads parts (address, length) at once; a part is shorter if the memory ends before.
    fn read_all(&self, parts: &[(u64, usize)]) -> Parts {
        let wanted = parts.iter().map(|(address, len)| (*address, u32::try_from(*len).unwrap_or(u32::MAX)));
        let read = match self.openers.read_memory(self.target, &self.memory, wanted.collect()) {
            Ok(read) => read,
            Err(error) => return vec![Err(loss(error)); parts.len()],
        };
        let part = |part: Option<Vec<u8>>| match part {
            // The address space of a process that has ended reads as empty.
            Some(bytes) if bytes.is_empty() => Err(StackLossReason::PythonProcessGone),
            Some(bytes) => Ok(bytes),
            None => Err(StackLossReason::PythonMemoryUnreadable),
        };
        read.into_iter().map(part).collect()
    }

    /// The starts of the code objects at these addresses, for [`CodeFingerprint::new`].
    pub fn read_code_objects(&self, addresses: &[u64]) -> Parts {
        let parts: Vec<_> = addresses.iter().map(|address| (*address, CODE_OBJECT_LEN)).collect();
        self.read_all(&parts)
    }

    /// Reads the function that a fingerprint belongs to.
    pub fn read_function(
        &self,
        code: &CodeFingerprint,
        layout: &CodeLayout,
    ) -> Result<PythonFunction, StackLossReason> {
        read_function(|parts| self.read_all(parts), code, layout)
    }
}

/// Parts of a memory, each or the reason why it could not be read.
type Parts = Vec<Result<Vec<u8>, StackLossReason>>;

/// Reads a function in two rounds: the headers of its objects, and then their content.
fn read_function(
    read: impl Fn(&[(u64, usize)]) -> Parts,
    code: &CodeFingerprint,
    layout: &CodeLayout,
) -> Result<PythonFunction, StackLossReason> {
    let headers = [(code.name, HEADER_LEN), (code.file, HEADER_LEN), (code.lines, layout.bytes_data)];
    let [name, file, lines] = three(read(&headers))?;
    let name = Text::from_header(code.name, &name?, layout)?;
    let file = Text::from_header(code.file, &file?, layout)?;
    let size = lines.and_then(|header| size_of_bytes(&header, layout)).unwrap_or(0);
    let line_table = (code.lines.wrapping_add(layout.bytes_data as u64), size);
    let [name_data, file_data, lines] = three(read(&[name.data, file.data, line_table]))?;
    Ok(PythonFunction {
        name: name.escaped(name_data)?,
        file: file.escaped(file_data)?,
        first_line: code.first_line,
        lines: lines.unwrap_or_default(),
        has_locations: layout.has_locations,
    })
}

fn three(parts: Parts) -> Result<[Result<Vec<u8>, StackLossReason>; 3], StackLossReason> {
    parts.try_into().map_err(|_| StackLossReason::PythonMemoryUnreadable)
}

fn loss(error: OpenError) -> StackLossReason {
    match error {
        OpenError::NotPermitted => StackLossReason::PythonMemoryNotPermitted,
        OpenError::NoAnswer => StackLossReason::FileSystemNoAnswer,
        OpenError::Unavailable => StackLossReason::OpenerUnavailable,
        _ => StackLossReason::PythonProcessGone,
    }
}

impl CodeFingerprint {
    /// From the start of a code object, whose type must be the one at `code_type`.
    pub fn new(
        object: &[u8],
        code_type: u64,
        layout: &CodeLayout,
    ) -> Result<CodeFingerprint, StackLossReason> {
        if u64_at(object, layout.object_type)? != code_type {
            return Err(StackLossReason::PythonNotCode);
        }
        Ok(CodeFingerprint {
            file: u64_at(object, layout.file_name)?,
            name: u64_at(object, layout.name)?,
            lines: u64_at(object, layout.line_table)?,
            first_line: u32_at(object, layout.first_line)?,
        })
    }
}

/// A `str` object, up to [`MAX_NAME`] characters.
struct Text {
    /// Where its characters are: address and length in bytes.
    data: (u64, usize),
    /// Bytes of a character.
    width: usize,
    is_cut: bool,
}

impl Text {
    fn from_header(address: u64, header: &[u8], layout: &CodeLayout) -> Result<Text, StackLossReason> {
        let state = u32_at(header, layout.text_state)?;
        if state & STATE_COMPACT == 0 {
            return Err(StackLossReason::PythonNotText);
        }
        let length = usize::try_from(u64_at(header, layout.text_length)?).unwrap_or(usize::MAX);
        let kept = length.min(MAX_NAME);
        let (data, width) = match (state & STATE_ASCII, state >> STATE_KIND_SHIFT & 7) {
            (STATE_ASCII, 1) => (layout.text_ascii, 1),
            (0, width @ (1 | 2 | 4)) => (layout.text_other, width as usize),
            _ => return Err(StackLossReason::PythonNotText),
        };
        let data = (address.wrapping_add(data as u64), kept * width);
        Ok(Text { data, width, is_cut: kept < length })
    }

    /// The characters, escaped.
    fn escaped(&self, data: Result<Vec<u8>, StackLossReason>) -> Result<String, StackLossReason> {
        if self.data.1 == 0 {
            return Ok(String::new());
        }
        let raw = data?;
        let characters = raw.chunks_exact(self.width).map(|bytes| {
            let number = bytes.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
            // Python allows a lone surrogate in a str; Rust has no such char.
            char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
        });
        let mut escaped = text::escape(&characters.collect::<String>());
        if self.is_cut || escaped.len() > MAX_NAME {
            escaped.truncate(escaped.floor_char_boundary(MAX_NAME));
            escaped.push('…');
        }
        Ok(escaped)
    }
}

/// The length of a `bytes` object; 0 if it is larger than [`MAX_LINES`].
fn size_of_bytes(header: &[u8], layout: &CodeLayout) -> Result<usize, StackLossReason> {
    let size = usize::try_from(u64_at(header, layout.bytes_size)?).unwrap_or(usize::MAX);
    Ok(if size > MAX_LINES { 0 } else { size })
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, StackLossReason> {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map(u64::from_le_bytes).ok_or(StackLossReason::PythonMemoryUnreadable)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, StackLossReason> {
    let half = bytes.get(at..at + 4).and_then(|half| half.try_into().ok());
    half.map(u32::from_le_bytes).ok_or(StackLossReason::PythonMemoryUnreadable)
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    pub fn function(
        memory: File,
        address: u64,
        code_type: u64,
        layout: &CodeLayout,
    ) -> Option<(String, String)> {
        let read = |parts: &[(u64, usize)]| -> Parts {
            let part = |&(address, len): &(u64, usize)| {
                let mut bytes = vec![0; len];
                let read = memory
                    .read_at(&mut bytes, address)
                    .map_err(|_| StackLossReason::PythonMemoryUnreadable)?;
                bytes.truncate(read);
                Ok(bytes)
            };
            parts.iter().map(part).collect()
        };
        let object = read(&[(address, CODE_OBJECT_LEN)]).pop()?.ok()?;
        let fingerprint = CodeFingerprint::new(&object, code_type, layout).ok()?;
        let function = read_function(read, &fingerprint, layout).ok()?;
        Some((function.name, function.file))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use podopsy_worker::layouts_for_version;

    pub(crate) const CODE_TYPE: u64 = 0x1234_5678;

    /// An object of Python 3.11 in the memory of the test itself.
    pub(crate) struct Object(Vec<u64>);

    impl Object {
        pub fn new(len: usize) -> Object {
            Object(vec![0; len / 8 + 16])
        }

        pub fn address(&self) -> u64 {
            self.0.as_ptr() as u64
        }

        pub fn put(&mut self, at: usize, word: u64) {
            self.0[at / 8] = word;
        }

        fn fill(&mut self, at: usize, bytes: &[u8]) {
            for (word, bytes) in self.0[at / 8..].iter_mut().zip(bytes.chunks(8)) {
                let mut whole = [0; 8];
                whole[..bytes.len()].copy_from_slice(bytes);
                *word = u64::from_le_bytes(whole);
            }
        }

        pub fn ascii(text: &str) -> Object {
            let mut object = Object::new(48 + text.len());
            object.put(16, text.len() as u64);
            object.put(32, 1 << 2 | 1 << 5 | 1 << 6);
            object.fill(48, text.as_bytes());
            object
        }

        fn wide(text: &str, size: usize) -> Object {
            let bytes: Vec<u8> =
                text.chars().flat_map(|c| u32::from(c).to_le_bytes()[..size].to_vec()).collect();
            let mut object = Object::new(72 + bytes.len());
            object.put(16, text.chars().count() as u64);
            object.put(32, (size as u64) << 2 | 1 << 5);
            object.fill(72, &bytes);
            object
        }

        pub fn bytes(bytes: &[u8]) -> Object {
            let mut object = Object::new(32 + bytes.len());
            object.put(16, bytes.len() as u64);
            object.fill(32, bytes);
            object
        }

        pub fn code(name: &Object, file: &Object, lines: &Object) -> Object {
            let mut code = Object::new(208);
            code.put(8, CODE_TYPE);
            code.put(72, 41);
            code.put(112, file.address());
            code.put(128, name.address());
            code.put(136, lines.address());
            code
        }
    }

    fn layout() -> CodeLayout {
        layouts_for_version((3, 11), &[]).unwrap().1
    }

    fn own_memory() -> ProcessMemory {
        ProcessMemory::open(&Openers::in_threads(), std::process::id()).unwrap()
    }

    fn read_fingerprint(address: u64, code_type: u64) -> Result<CodeFingerprint, StackLossReason> {
        let object = own_memory().read_code_objects(&[address]).pop().unwrap()?;
        CodeFingerprint::new(&object, code_type, &layout())
    }

    fn read_one(address: u64, len: usize) -> Result<Vec<u8>, StackLossReason> {
        own_memory().read_all(&[(address, len)]).pop().unwrap()
    }

    fn read_text(object: &Object) -> Result<String, StackLossReason> {
        let header = read_one(object.address(), HEADER_LEN)?;
        let text = Text::from_header(object.address(), &header, &layout())?;
        text.escaped(read_one(text.data.0, text.data.1))
    }

    #[test]
    fn a_code_object_is_read_with_its_name_file_and_lines() {
        let (name, file) = (Object::ascii("Outer.<locals>.inner"), Object::ascii("/srv/app.py"));
        let lines = Object::bytes(&[0x80, 1, 2]);
        let code = Object::code(&name, &file, &lines);
        let fingerprint = read_fingerprint(code.address(), CODE_TYPE).unwrap();
        let function = own_memory().read_function(&fingerprint, &layout()).unwrap();
        assert_eq!((&*function.name, &*function.file), ("Outer.<locals>.inner", "/srv/app.py"));
        assert_eq!((function.first_line, &*function.lines), (41, &[0x80, 1, 2][..]));
        assert_eq!(read_fingerprint(code.address(), 7), Err(StackLossReason::PythonNotCode));
        assert!(read_fingerprint(8, CODE_TYPE).is_err());
    }

    #[test]
    fn texts_of_every_character_width_are_read_and_escaped() {
        let read = |object: &Object| read_text(object).unwrap();
        assert_eq!(read(&Object::ascii("")), "");
        assert_eq!(read(&Object::ascii("a\x1b[2J;")), "a\\x1b[2J;");
        assert_eq!(read(&Object::wide("é", 1)), "é");
        assert_eq!(read(&Object::wide("名前\u{202e}", 2)), "名前\\u{202e}");
        assert_eq!(read(&Object::wide("a\u{1f40d}", 4)), "a\\u{1f40d}");
        let long = read(&Object::ascii(&"x".repeat(1 << 20)));
        assert_eq!((long.len(), long.ends_with("x…")), (MAX_NAME + '…'.len_utf8(), true));
    }

    #[test]
    fn an_object_that_is_not_a_compact_string_is_rejected() {
        let mut invalid = Object::ascii("abc");
        for state in [0, 1 << 5, 3 << 2 | 1 << 5, 2 << 2 | 1 << 5 | 1 << 6, 7 << 2 | 1 << 5] {
            invalid.put(32, state);
            assert_eq!(read_text(&invalid), Err(StackLossReason::PythonNotText), "{state:#x}");
        }
        invalid.put(32, 1 << 2 | 1 << 5 | 1 << 6);
        invalid.put(16, u64::MAX);
        // A false length is cut to the bound, and to the memory that there is.
        assert!(read_text(&invalid).is_ok_and(|text| text.len() <= MAX_NAME + '…'.len_utf8()));
    }

    #[test]
    fn a_table_of_lines_over_its_bound_is_left_out() {
        let mut table = Object::bytes(&[1, 2, 3]);
        table.put(16, MAX_LINES as u64 + 1);
        let size = |table: &Object| size_of_bytes(&read_one(table.address(), 32).unwrap(), &layout());
        assert_eq!(size(&table), Ok(0));
        table.put(16, 3);
        assert_eq!(size(&table), Ok(3));
    }
}
