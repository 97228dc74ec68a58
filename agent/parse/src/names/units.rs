//! Reads of `.debug_info` only the units that have the wanted addresses.
//!
//! A debug file has hundreds or thousands of units, and a profile meets a few of them. addr2line keeps the abbreviations and
//! the list of source files of every unit that it sees, several times the bytes of the unit. So the units that
//! `.debug_aranges` excludes are neither read nor seen: in their place is a type unit, which has no code. All others keep
//! their offsets, by which units refer to each other.
//!
//! Must not depend on: where the section is, whether it is packed.

use std::io::{self, Read};

use addr2line::gimli::{DebugAranges, LittleEndian};

/// Bytes of a unit's length in the 32-bit format of DWARF.
const LENGTH: usize = 4;
/// Lengths from here on are reserved (DWARF 5, 7.4). One of them announces the 64-bit format.
const RESERVED: u32 = 0xffff_fff0;
/// Bytes of the header of a type unit: length, version, unit type, address size, abbreviations, signature, offset of the type
/// (DWARF 5, 7.5.1.3).
const TYPE_UNIT: usize = 24;
const DW_UT_TYPE: u8 = 2;

/// Which units are left out.
#[derive(Debug, Default)]
pub(super) struct ExcludedUnits {
    /// Offsets in `.debug_info`, in order.
    offsets: Vec<u64>,
}

impl ExcludedUnits {
    /// The units for which `.debug_aranges` has ranges, none of which has one of the addresses. `addresses` is in order.
    pub fn new(aranges: &[u8], addresses: &[u64]) -> ExcludedUnits {
        let aranges = DebugAranges::new(aranges, LittleEndian);
        let mut sets = aranges.headers();
        // A unit may have several sets.
        let (mut listed, mut wanted) = (Vec::new(), Vec::new());
        while let Ok(Some(set)) = sets.next() {
            let unit = set.debug_info_offset().0 as u64;
            let mut entries = set.entries();
            let mut is_listed = false;
            let is_wanted = loop {
                match entries.next() {
                    Ok(None) => break false,
                    Ok(Some(entry)) => {
                        let range = entry.range();
                        is_listed |= range.begin < range.end;
                        let next = addresses.partition_point(|&address| address < range.begin);
                        if addresses.get(next).is_some_and(|&address| address < range.end) {
                            break true;
                        }
                    }
                    // What the rest of the set would list is not known.
                    Err(_) => break true,
                }
            };
            match (is_wanted, is_listed) {
                (true, _) => wanted.push(unit),
                (false, true) => listed.push(unit),
                (false, false) => {}
            }
        }
        wanted.sort_unstable();
        listed.sort_unstable();
        listed.dedup();
        listed.retain(|unit| wanted.binary_search(unit).is_err());
        ExcludedUnits { offsets: listed }
    }

    fn has(&self, unit: u64) -> bool {
        self.offsets.binary_search(&unit).is_ok()
    }
}

/// Where the bytes of a section come from, from its start to its end.
pub(super) trait SectionReader: Read {
    /// Leaves bytes out.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// The units of a section of `size` bytes, each at its offset.
pub(super) struct Units {
    pub bytes: Vec<u8>,
    pub left_out: usize,
}

impl Units {
    /// Reads all units but the excluded ones. From a unit on whose length is not within the section, or is that of the 64-bit
    /// format, everything is read.
    pub fn read(
        section: &mut impl SectionReader,
        size: usize,
        excluded: &ExcludedUnits,
    ) -> io::Result<Units> {
        // Pages that are not written to take no memory.
        let mut units = Units { bytes: vec![0; size], left_out: 0 };
        let mut read_to = 0;
        let mut unit = 0;
        while size - unit >= LENGTH {
            read_to = unit + LENGTH;
            let length = &mut units.bytes[unit..read_to];
            section.read_exact(length)?;
            let Some(end) = end_of_unit(length, unit).filter(|end| *end <= size) else { break };
            if end - unit >= TYPE_UNIT && excluded.has(unit as u64) {
                section.skip((end - read_to) as u64)?;
                units.bytes[unit..unit + TYPE_UNIT].copy_from_slice(&type_unit(end - unit));
                units.left_out += 1;
            } else {
                section.read_exact(&mut units.bytes[read_to..end])?;
            }
            (read_to, unit) = (end, end);
        }
        section.read_exact(&mut units.bytes[read_to..])?;
        Ok(units)
    }
}

/// The end of a unit in the 32-bit format, by its length, which is behind itself.
fn end_of_unit(length: &[u8], unit: usize) -> Option<usize> {
    let length = u32::from_le_bytes(length.try_into().ok()?);
    (length < RESERVED).then(|| unit + LENGTH + length as usize)
}

/// The header of a type unit of `size` bytes.
fn type_unit(size: usize) -> [u8; TYPE_UNIT] {
    let mut header = [0; TYPE_UNIT];
    header[..LENGTH].copy_from_slice(&((size - LENGTH) as u32).to_le_bytes());
    header[4..6].copy_from_slice(&5_u16.to_le_bytes());
    (header[6], header[7]) = (DW_UT_TYPE, 8);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SectionReader for &[u8] {
        fn skip(&mut self, bytes: u64) -> io::Result<()> {
            *self = self.get(bytes as usize..).ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(())
        }
    }

    /// A unit of `size` bytes.
    fn unit(size: usize, fill: u8) -> Vec<u8> {
        let mut unit = (size as u32 - 4).to_le_bytes().to_vec();
        unit.resize(size, fill);
        unit
    }

    fn read(section: &[u8], excluded: &[u64]) -> Units {
        let excluded = ExcludedUnits { offsets: excluded.to_vec() };
        Units::read(&mut &section[..], section.len(), &excluded).unwrap()
    }

    /// A set of `.debug_aranges` (DWARF 5, 6.1.2) for the unit at an offset.
    fn set(unit: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut set = vec![2, 0];
        set.extend(unit.to_le_bytes());
        set.extend([8, 0, 0, 0, 0, 0]);
        for (begin, length) in ranges.iter().chain([&(0, 0)]) {
            set.extend(begin.to_le_bytes());
            set.extend(length.to_le_bytes());
        }
        [(set.len() as u32).to_le_bytes().to_vec(), set].concat()
    }

    #[test]
    fn an_excluded_unit_is_a_type_unit_and_the_others_keep_their_offsets() {
        let section = [unit(40, 1), unit(30, 2), unit(50, 3)].concat();
        let units = read(&section, &[40]);
        assert_eq!(units.left_out, 1);
        assert_eq!((&units.bytes[..40], &units.bytes[70..]), (&section[..40], &section[70..]));
        assert_eq!(units.bytes[40..44], section[40..44], "its length is the same");
        assert_eq!(units.bytes[44..48], [5, 0, DW_UT_TYPE, 8]);
        assert!(units.bytes[48..70].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_unit_too_small_for_a_header_is_read() {
        let section = [unit(20, 1), unit(30, 2)].concat();
        assert_eq!(read(&section, &[0]).bytes, section);
    }

    #[test]
    fn behind_a_length_that_is_none_everything_is_read() {
        for damaged in [u32::MAX, RESERVED, 1000] {
            let rest = [damaged.to_le_bytes().to_vec(), vec![7; 60]].concat();
            let section = [unit(30, 1), rest].concat();
            assert_eq!(read(&section, &[30, 34]).bytes, section, "{damaged:#x}");
        }
        let short = [unit(30, 1), vec![9; 3]].concat();
        assert_eq!(read(&short, &[30]).bytes, short);
    }

    #[test]
    fn a_unit_is_excluded_if_its_ranges_are_listed_and_none_has_an_address() {
        let sets = [
            set(0, &[(0x100, 0x10), (0x200, 0x10)]),
            set(50, &[(0x300, 0x10)]),
            set(90, &[]),
            set(120, &[(0x400, 8)]),
            // The second set of the same unit.
            set(120, &[(0x500, 8)]),
        ];
        let excluded = |addresses: &[u64]| ExcludedUnits::new(&sets.concat(), addresses).offsets;
        assert_eq!(excluded(&[0x20f]), [50, 120], "the end of a range is not in it, and 90 lists none");
        assert_eq!(excluded(&[0x210, 0x300, 0x507]), [0]);
        assert_eq!(excluded(&[]), [0, 50, 120]);
    }

    #[test]
    fn a_damaged_list_excludes_nothing_that_it_does_not_list() {
        let mut sets = [set(0, &[(0x100, 0x10)]), set(50, &[(0x300, 0x10)])].concat();
        sets.truncate(sets.len() - 20);
        let excluded = ExcludedUnits::new(&sets, &[0x999]).offsets;
        assert!(!excluded.contains(&50), "{excluded:?}");
        assert!(ExcludedUnits::new(&[0xff; 100], &[1]).offsets.is_empty());
        assert!(ExcludedUnits::new(&[], &[1]).offsets.is_empty());
    }
}
