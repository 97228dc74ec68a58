//! A process's memory → what its code objects are called.
//!
//! Must not know: samples, stacks. All of it is the process's to choose: reads are bounded, and texts are escaped here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::offsets::CodeLayout;
use podopsy_model::text;

/// Bytes of a name that are kept once it is escaped; the rest is `…`. A stack has 128 of them.
const MAX_NAME: usize = 256;
/// Some 30,000 instructions in one function.
const MAX_LINES: usize = 64 << 10;
/// The part of a code object that is read.
const OBJECT: usize = 208;
/// The head of a text or of a bytes object.
const HEAD: usize = 80;

/// `PyASCIIObject.state`: the same bits from 3.10 to 3.13.
const STATE_KIND_SHIFT: u32 = 2;
const STATE_COMPACT: u32 = 1 << 5;
const STATE_ASCII: u32 = 1 << 6;

/// A function as its code object has it. Escaped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Function {
    pub name: String,
    pub file: String,
    pub first_line: u32,
    /// `co_linetable`; empty: it is too large, or not readable.
    pub lines: Vec<u8>,
    pub has_locations: bool,
}

/// What tells a code object from another that came to lie at the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    file: u64,
    name: u64,
    lines: u64,
    first_line: u32,
}

/// A process's memory, as it was when this was opened: not that of a program which it has started since.
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    /// An error is a counter's name.
    pub fn open(pid: u32) -> Result<Memory, &'static str> {
        File::open(format!("/proc/{pid}/mem")).map(Memory).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => "python_memory_not_permitted",
            _ => "python_process_gone",
        })
    }

    /// As much as there is of `len` bytes.
    fn read(&self, address: u64, len: usize) -> Result<Vec<u8>, &'static str> {
        let mut bytes = vec![0; len];
        match self.0.read_at(&mut bytes, address) {
            // Memory whose process is gone.
            Ok(0) => Err("python_process_gone"),
            Ok(read) => {
                bytes.truncate(read);
                Ok(bytes)
            }
            Err(_) => Err("python_memory_unreadable"),
        }
    }

    /// What names the code object at an address, which must be of the type at `code_type`.
    pub fn fingerprint(
        &self,
        address: u64,
        code_type: u64,
        at: &CodeLayout,
    ) -> Result<Fingerprint, &'static str> {
        let object = self.read(address, OBJECT)?;
        if word(&object, at.object_type)? != code_type {
            return Err("python_not_code");
        }
        Ok(Fingerprint {
            file: word(&object, at.file_name)?,
            name: word(&object, at.name)?,
            lines: word(&object, at.line_table)?,
            first_line: half(&object, at.first_line)?,
        })
    }

    /// Reads what a fingerprint leads to.
    pub fn function(&self, code: &Fingerprint, at: &CodeLayout) -> Result<Function, &'static str> {
        Ok(Function {
            name: self.text(code.name, at)?,
            file: self.text(code.file, at)?,
            first_line: code.first_line,
            lines: self.bytes(code.lines, at).unwrap_or_default(),
            has_locations: at.has_locations,
        })
    }

    fn text(&self, address: u64, at: &CodeLayout) -> Result<String, &'static str> {
        let head = self.read(address, HEAD)?;
        let state = half(&head, at.text_state)?;
        if state & STATE_COMPACT == 0 {
            return Err("python_not_text");
        }
        let length = usize::try_from(word(&head, at.text_length)?).unwrap_or(usize::MAX);
        let kept = length.min(MAX_NAME);
        let (data, size) = match (state & STATE_ASCII, state >> STATE_KIND_SHIFT & 7) {
            (STATE_ASCII, 1) => (at.text_ascii, 1),
            (0, size @ (1 | 2 | 4)) => (at.text_other, size as usize),
            _ => return Err("python_not_text"),
        };
        if kept == 0 {
            return Ok(String::new());
        }
        let raw = self.read(address.wrapping_add(data as u64), kept * size)?;
        let characters = raw.chunks_exact(size).map(|bytes| {
            let number = bytes.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
            // Half a surrogate is a character to Python.
            char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
        });
        let mut escaped = text::escape(&characters.collect::<String>());
        if kept < length || escaped.len() > MAX_NAME {
            escaped.truncate(escaped.floor_char_boundary(MAX_NAME));
            escaped.push('…');
        }
        Ok(escaped)
    }

    fn bytes(&self, address: u64, at: &CodeLayout) -> Result<Vec<u8>, &'static str> {
        let head = self.read(address, at.bytes_data)?;
        let size = usize::try_from(word(&head, at.bytes_size)?).unwrap_or(usize::MAX);
        if size == 0 || size > MAX_LINES {
            return Ok(Vec::new());
        }
        self.read(address.wrapping_add(at.bytes_data as u64), size)
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u64, &'static str> {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map(u64::from_le_bytes).ok_or("python_memory_unreadable")
}

fn half(bytes: &[u8], at: usize) -> Result<u32, &'static str> {
    let half = bytes.get(at..at + 4).and_then(|half| half.try_into().ok());
    half.map(u32::from_le_bytes).ok_or("python_memory_unreadable")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::python::offsets::offsets;

    pub(crate) const CODE_TYPE: u64 = 0x1234_5678;

    /// Objects of Python 3.11, in our own memory.
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
        offsets((3, 11), &[]).unwrap().1
    }

    fn own() -> Memory {
        Memory::open(std::process::id()).unwrap()
    }

    #[test]
    fn a_code_object_is_read_whole() {
        let (name, file) = (Object::ascii("Outer.<locals>.inner"), Object::ascii("/srv/app.py"));
        let lines = Object::bytes(&[0x80, 1, 2]);
        let code = Object::code(&name, &file, &lines);
        let fingerprint = own().fingerprint(code.address(), CODE_TYPE, &layout()).unwrap();
        let function = own().function(&fingerprint, &layout()).unwrap();
        assert_eq!((&*function.name, &*function.file), ("Outer.<locals>.inner", "/srv/app.py"));
        assert_eq!((function.first_line, &*function.lines), (41, &[0x80, 1, 2][..]));
        assert_eq!(own().fingerprint(code.address(), 7, &layout()), Err("python_not_code"));
        assert!(own().fingerprint(8, CODE_TYPE, &layout()).is_err());
    }

    #[test]
    fn texts_of_every_width_are_read_and_escaped() {
        let read = |object: &Object| own().text(object.address(), &layout()).unwrap();
        assert_eq!(read(&Object::ascii("")), "");
        assert_eq!(read(&Object::ascii("a\x1b[2J;")), "a\\x1b[2J;");
        assert_eq!(read(&Object::wide("é", 1)), "é");
        assert_eq!(read(&Object::wide("名前\u{202e}", 2)), "名前\\u{202e}");
        assert_eq!(read(&Object::wide("a\u{1f40d}", 4)), "a\\u{1f40d}");
        let long = read(&Object::ascii(&"x".repeat(1 << 20)));
        assert_eq!((long.len(), long.ends_with("x…")), (MAX_NAME + '…'.len_utf8(), true));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let mut lies = Object::ascii("abc");
        for state in [0, 1 << 5, 3 << 2 | 1 << 5, 2 << 2 | 1 << 5 | 1 << 6, 7 << 2 | 1 << 5] {
            lies.put(32, state);
            assert_eq!(own().text(lies.address(), &layout()), Err("python_not_text"), "{state:#x}");
        }
        lies.put(32, 1 << 2 | 1 << 5 | 1 << 6);
        lies.put(16, u64::MAX);
        // A length that lies is as long as is kept at most, and no longer than memory.
        assert!(
            own().text(lies.address(), &layout()).is_ok_and(|text| text.len() <= MAX_NAME + '…'.len_utf8())
        );
    }

    #[test]
    fn a_table_of_lines_has_a_bound() {
        let mut table = Object::bytes(&[1, 2, 3]);
        table.put(16, MAX_LINES as u64 + 1);
        assert_eq!(own().bytes(table.address(), &layout()), Ok(Vec::new()));
        table.put(16, 3);
        assert_eq!(own().bytes(table.address(), &layout()), Ok(vec![1, 2, 3]));
    }
}
