//! Finds the source line of an instruction in the two formats of `co_linetable`.
//!
//! Must not depend on: processes. The tables come from the process and can hold any bytes.

/// The line of the instruction at byte `at` of a function that begins at line `first`. None if it has no line, as is the
/// case for code that the compiler added.
pub(super) fn line_at(table: &[u8], first: u32, at: u32, has_locations: bool) -> Option<u32> {
    let (mut line, mut start) = (i64::from(first), 0u64);
    let mut rest = table;
    loop {
        let entry = if has_locations { next_location(&mut rest)? } else { next_line_delta(&mut rest)? };
        if let Some(lines) = entry.lines {
            line = line.checked_add(lines)?;
        }
        if (start..start + entry.length).contains(&u64::from(at)) {
            return entry.lines.and_then(|_| u32::try_from(line).ok());
        }
        start += entry.length;
    }
}

/// One entry of a table: a run of instructions with one line.
struct LineEntry {
    /// Bytes of instructions.
    length: u64,
    /// Distance from the entry's line before. None if these instructions have no line.
    lines: Option<i64>,
}

/// Reads an entry of a location table, the format since 3.11 (`Objects/locations.md`). The first byte has its highest bit
/// set, then four bits for the form and three for the length in 2-byte units less 1. The bytes that belong to the form
/// follow, all with their highest bit clear.
fn next_location(rest: &mut &[u8]) -> Option<LineEntry> {
    let (&head, tail) = rest.split_first()?;
    let len = tail.iter().position(|byte| byte & 0x80 != 0).unwrap_or(tail.len());
    let (inside, after) = tail.split_at(len);
    *rest = after;
    let lines = match head >> 3 & 15 {
        form @ 0..=12 => Some(i64::from(form.saturating_sub(10))),
        13 | 14 => Some(signed_varint(inside)?),
        _ => None,
    };
    Some(LineEntry { length: u64::from(head & 7) * 2 + 2, lines })
}

/// A number of six bits a byte, lowest first; bit 6 means that another byte follows. The lowest bit of all is the sign.
fn signed_varint(bytes: &[u8]) -> Option<i64> {
    let mut number = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(8) {
        number |= u64::from(byte & 63) << (6 * index);
        if byte & 64 == 0 {
            let size = i64::try_from(number >> 1).ok()?;
            return Some(if number & 1 == 0 { size } else { -size });
        }
    }
    None
}

/// Reads an entry of the format of 3.10 (PEP 626): the distance in bytes, then the distance in lines. -128 stands for no
/// line.
fn next_line_delta(rest: &mut &[u8]) -> Option<LineEntry> {
    let (&[bytes, lines], after) = rest.split_first_chunk()?;
    *rest = after;
    let lines = lines as i8;
    Some(LineEntry { length: u64::from(bytes), lines: (lines != i8::MIN).then_some(i64::from(lines)) })
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    /// The line of an instruction: see `line_at`.
    pub fn line_at(table: &[u8], first: u32, at: u32, has_locations: bool) -> Option<u32> {
        super::line_at(table, first, at, has_locations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a table with what the interpreter itself gives for it: `list(f.__code__.co_lines())`.
    fn assert_lines(table: &[u8], first: u32, lines: &[(u32, u32, Option<u32>)], has_locations: bool) {
        for &(start, end, expected) in lines {
            for at in (start..end).step_by(2) {
                assert_eq!(line_at(table, first, at, has_locations), expected, "at {at}");
            }
        }
        let after = lines.last().map_or(0, |&(_, end, _)| end);
        assert_eq!(line_at(table, first, after, has_locations), None);
    }

    #[test]
    fn lines_of_python_3_10_are_those_of_its_interpreter() {
        let table = b"\x02\x80\x04\x01\x06\x01\x02\x01\x06\xff\x0a\x03\x06\x01\x02\x01\x04\xff\x12\xff\x02\x07\x02\x01\
            \x04\xff\x00\x7f\x02\x4c\x00\x81\x14\xad\x0e\x03\x02\x02\x02\xff\x08\x80\x02\xff\x02\xfd\x02\x07\
            \x02\x01\x04\xff\x00\x7f\x02\x4c\x00\x81\x02\xb4\x02\x01\x04\xff\x00\x7f\x02\x4c\x14\x01";
        let lines = [
            (0, 2, None),
            (2, 6, Some(4)),
            (6, 12, Some(5)),
            (12, 14, Some(6)),
            (14, 20, Some(5)),
            (20, 30, Some(8)),
            (30, 36, Some(9)),
            (36, 38, Some(10)),
            (38, 42, Some(9)),
            (42, 60, Some(8)),
            (60, 62, Some(15)),
            (62, 64, Some(16)),
            (64, 68, Some(15)),
            (68, 70, Some(218)),
            (70, 90, Some(8)),
            (90, 104, Some(11)),
            (104, 106, Some(13)),
            (106, 108, Some(12)),
            (108, 116, None),
            (116, 118, Some(11)),
            (118, 120, Some(8)),
            (120, 122, Some(15)),
            (122, 124, Some(16)),
            (124, 128, Some(15)),
            (128, 130, Some(218)),
            (130, 132, Some(15)),
            (132, 134, Some(16)),
            (134, 138, Some(15)),
            (138, 140, Some(218)),
            (140, 160, Some(219)),
        ];
        assert_lines(table, 3, &lines, false);
    }

    #[test]
    fn lines_of_python_3_11_are_those_of_its_interpreter() {
        let table = b"\xe8\x00\xe8\x00\x80\x00\xf0\x02\x56\x03\x05\x0d\xf0\x02\x02\x0d\x13\xf0\x00\x02\x0d\x13\xd8\x16\
            \x17\xf0\x03\x02\x0d\x13\xf1\x00\x02\x0d\x13\xf4\x00\x02\x0d\x13\x88\x01\xf5\x06\x00\x0e\x12\x90\
            \x21\x89\x57\x8c\x57\xf0\x00\x02\x09\x1a\x98\x01\xdd\x13\x14\x90\x51\x98\x01\xd8\x17\x18\xf0\x03\
            \x01\x14\x1a\xf1\x00\x01\x14\x1a\xf4\x00\x01\x14\x1a\xf0\x03\x02\x09\x1a\xf0\x00\x02\x09\x1a\xf0\
            \x00\x02\x09\x1a\xf0\x00\x02\x09\x1a\xf1\x00\x02\x09\x1a\xf4\x00\x02\x09\x1a\xf0\x00\x02\x09\x1a\
            \xf5\x0e\x00\x09\x0e\xd8\x0c\x0d\xf1\x03\x01\x09\x0f\xf4\x00\x01\x09\x0f\xf0\x00\x01\x09\x0f\xf0\
            \x56\x06\x00\x09\x0d\xf0\x65\x06\x02\x09\x1a\xf0\x00\x02\x09\x1a\xf0\x00\x02\x09\x1a\xf0\x00\x02\
            \x09\x1a\xf8\xf8\xf8\xf0\x00\x02\x09\x1a\xf0\x00\x02\x09\x1a\xf0\x00\x02\x09\x1a\xf0\x00\x02\x09\
            \x1a\xf0\x00\x02\x09\x1a\xf8\xf5\x06\x00\x0c\x16\xf0\x00\x02\x05\x0f\xf0\x00\x02\x05\x0f\xf0\x00\
            \x02\x05\x0f\xe0\x0c\x0d\xf0\x03\x01\x09\x0f\xf8\xf8\xf8\xf8\xf0\x03\x02\x05\x0f\xf8\xf8\xf8\xf0\
            \x07\x02\x09\x1a\xf5\x0e\x00\x09\x0e\xd8\x0c\x0d\xf1\x03\x01\x09\x0f\xf4\x00\x01\x09\x0f\xf0\x00\
            \x01\x09\x0f\xf0\x56\x06\x00\x09\x0d\xf8\xf5\x57\x06\x00\x09\x0e\xd8\x0c\x0d\xf1\x03\x01\x09\x0f\
            \xf4\x00\x01\x09\x0f\xf0\x00\x01\x09\x0f\xf0\x56\x06\x00\x09\x0d\x88\x04\x88\x04\x88\x04\xd8\x0d\
            \x0e\xd0\x04\x17\xd0\x04\x17\x88\x01\x90\x61\x90\x07\x90\x07\x90\x07\x90\x07\xd0\x04\x17\xd0\x04\
            \x17";
        let lines = [
            (0, 6, Some(3)),
            (6, 8, Some(4)),
            (8, 12, Some(5)),
            (12, 14, Some(6)),
            (14, 32, Some(5)),
            (32, 64, Some(8)),
            (64, 80, Some(9)),
            (80, 82, Some(10)),
            (82, 98, Some(9)),
            (98, 122, Some(8)),
            (122, 134, Some(15)),
            (134, 136, Some(16)),
            (136, 152, Some(15)),
            (152, 154, Some(218)),
            (154, 162, Some(8)),
            (162, 168, None),
            (168, 178, Some(8)),
            (178, 180, None),
            (180, 198, Some(11)),
            (198, 200, Some(13)),
            (200, 202, Some(12)),
            (202, 210, None),
            (210, 212, Some(11)),
            (212, 218, None),
            (218, 220, Some(8)),
            (220, 232, Some(15)),
            (232, 234, Some(16)),
            (234, 250, Some(15)),
            (250, 252, Some(218)),
            (252, 254, None),
            (254, 266, Some(15)),
            (266, 268, Some(16)),
            (268, 284, Some(15)),
            (284, 292, Some(218)),
            (292, 314, Some(219)),
        ];
        assert_lines(table, 3, &lines, true);
    }

    #[test]
    fn lines_of_python_3_12_are_those_of_its_interpreter() {
        let table = b"\xe8\x00\xf8\x80\x00\xf0\x02\x56\x03\x05\x0d\xe0\x16\x17\xf6\x03\x02\x0d\x13\xd8\x11\x12\xd9\x10\
            \x11\xf2\x05\x00\x0e\x0f\xf0\x00\x02\x0d\x13\x88\x01\xf0\x00\x02\x0d\x13\xf4\x06\x00\x0e\x12\x90\
            \x21\x8b\x57\xf0\x00\x02\x09\x1a\x98\x01\xdc\x13\x14\x90\x51\x98\x01\xd8\x17\x18\xf4\x03\x01\x14\
            \x1a\xf7\x03\x02\x09\x1a\xf0\x00\x02\x09\x1a\xf4\x0e\x00\x09\x0e\xd8\x0c\x0d\xf4\x03\x01\x09\x0f\
            \xf0\x56\x06\x00\x09\x0d\xf9\xf2\x6b\x06\x02\x0d\x13\xf7\x06\x02\x09\x1a\xf0\x00\x02\x09\x1a\xfa\
            \xf0\x00\x02\x09\x1a\xf8\xf4\x06\x00\x0c\x16\xf2\x00\x02\x05\x0f\xe0\x0c\x0d\xf0\x03\x01\x09\x0f\
            \xfb\xf0\x03\x02\x05\x0f\xfa\xf0\x07\x02\x09\x1a\xf4\x0e\x00\x09\x0e\xd8\x0c\x0d\xf4\x03\x01\x09\
            \x0f\xf0\x56\x06\x00\x09\x0d\xf8\xf4\x57\x06\x00\x09\x0e\xd8\x0c\x0d\xf4\x03\x01\x09\x0f\xf0\x56\
            \x06\x00\x09\x0d\xfa\xd8\x0d\x0e\xd2\x04\x17\x88\x01\x90\x61\x93\x07\xd1\x04\x17\xf9";
        let lines = [
            (0, 2, Some(3)),
            (2, 4, None),
            (4, 6, Some(3)),
            (6, 8, Some(4)),
            (8, 10, Some(6)),
            (10, 24, Some(5)),
            (24, 26, Some(6)),
            (26, 30, Some(7)),
            (30, 42, Some(5)),
            (42, 66, Some(8)),
            (66, 80, Some(9)),
            (80, 82, Some(10)),
            (82, 92, Some(9)),
            (92, 110, Some(8)),
            (110, 120, Some(15)),
            (120, 122, Some(16)),
            (122, 132, Some(15)),
            (132, 134, Some(218)),
            (134, 138, None),
            (138, 144, Some(5)),
            (144, 162, Some(8)),
            (162, 168, None),
            (168, 170, Some(8)),
            (170, 172, None),
            (172, 188, Some(11)),
            (188, 190, Some(13)),
            (190, 192, Some(12)),
            (192, 200, None),
            (200, 202, Some(11)),
            (202, 208, None),
            (208, 210, Some(8)),
            (210, 220, Some(15)),
            (220, 222, Some(16)),
            (222, 232, Some(15)),
            (232, 234, Some(218)),
            (234, 236, None),
            (236, 246, Some(15)),
            (246, 248, Some(16)),
            (248, 258, Some(15)),
            (258, 260, Some(218)),
            (260, 266, None),
            (266, 290, Some(219)),
            (290, 294, None),
        ];
        assert_lines(table, 3, &lines, true);
    }

    #[test]
    fn lines_of_python_3_13_are_those_of_its_interpreter() {
        let table = b"\xe9\x00\x80\x00\xf0\x02\x56\x03\x05\x0d\xe1\x16\x17\xf3\x03\x02\x0d\x13\xd9\x16\x17\x90\x11\xdc\
            \x10\x11\xf7\x05\x00\x0e\x0f\xd9\x16\x17\xf0\x03\x00\x09\x0a\xf0\x00\x02\x0d\x13\xf4\x06\x00\x0e\
            \x12\x90\x21\x8c\x57\x98\x01\xdc\x13\x14\x90\x51\xd8\x17\x18\xf1\x03\x01\x14\x1a\xf7\x03\x00\x0e\
            \x15\x88\x57\xf4\x0e\x00\x09\x0e\xd8\x0c\x0d\xf4\x03\x01\x09\x0f\xf0\x56\x06\x00\x09\x0d\xf9\xf2\
            \x6b\x06\x02\x0d\x13\xf7\x06\x00\x0e\x15\x8d\x57\xfb\xf4\x06\x00\x0c\x16\xf3\x00\x02\x05\x0f\xe0\
            \x0c\x0d\xf0\x03\x01\x09\x0f\xfb\xf0\x03\x02\x05\x0f\xfa\xf0\x07\x00\x0e\x15\xf4\x0e\x00\x09\x0e\
            \xd8\x0c\x0d\xf4\x03\x01\x09\x0f\xf0\x56\x06\x00\x09\x0d\xf8\xf4\x57\x06\x00\x09\x0e\xd8\x0c\x0d\
            \xf4\x03\x01\x09\x0f\xf0\x56\x06\x00\x09\x0d\xfa\xdb\x0d\x0e\x88\x01\x94\x07\x8a\x51\xf9";
        let lines = [
            (0, 6, Some(3)),
            (6, 8, Some(4)),
            (8, 12, Some(6)),
            (12, 20, Some(5)),
            (20, 26, Some(6)),
            (26, 36, Some(7)),
            (36, 52, Some(5)),
            (52, 56, Some(6)),
            (56, 60, Some(5)),
            (60, 84, Some(8)),
            (84, 96, Some(9)),
            (96, 98, Some(10)),
            (98, 102, Some(9)),
            (102, 120, Some(8)),
            (120, 130, Some(15)),
            (130, 132, Some(16)),
            (132, 142, Some(15)),
            (142, 144, Some(218)),
            (144, 148, None),
            (148, 154, Some(5)),
            (154, 182, Some(8)),
            (182, 190, None),
            (190, 208, Some(11)),
            (208, 210, Some(13)),
            (210, 212, Some(12)),
            (212, 220, None),
            (220, 222, Some(11)),
            (222, 228, None),
            (228, 230, Some(8)),
            (230, 240, Some(15)),
            (240, 242, Some(16)),
            (242, 252, Some(15)),
            (252, 254, Some(218)),
            (254, 256, None),
            (256, 266, Some(15)),
            (266, 268, Some(16)),
            (268, 278, Some(15)),
            (278, 280, Some(218)),
            (280, 286, None),
            (286, 312, Some(219)),
            (312, 316, None),
        ];
        assert_lines(table, 3, &lines, true);
    }

    #[test]
    fn random_tables_are_read_to_an_end() {
        let mut random = fastrand::Rng::with_seed(1);
        for round in 0..2000 {
            let bytes: Vec<u8> = (0..round % 97).map(|_| random.u8(..)).collect();
            for at in [0, 2, 500, u32::MAX] {
                line_at(&bytes, u32::MAX, at, round % 2 == 0);
            }
        }
    }
}
