//! Checks how deep debug information nests. It gets bytes, and must not depend on files or on blazesym.
//!
//! blazesym descends into inlined functions by recursion. A hostile `.debug_info` can nest as deep as it has bytes,
//! which would overflow the stack. That ends the whole process: no handler catches it.

use gimli::{DebugAbbrev, DebugInfo, LittleEndian};

/// Real programs stay below 100.
const MAX_DEPTH: isize = 1024;

/// False if any unit nests too deep, or cannot be read to its end.
pub(super) fn is_sane(info: &[u8], abbrev: &[u8]) -> bool {
    deepest(info, abbrev).is_ok_and(|depth| depth <= MAX_DEPTH)
}

fn deepest(info: &[u8], abbrev: &[u8]) -> gimli::Result<isize> {
    let (info, abbrev) = (DebugInfo::new(info, LittleEndian), DebugAbbrev::new(abbrev, LittleEndian));
    let mut deepest = 0;
    let mut units = info.units();
    // A unit mostly shares its abbreviations with the previous unit, or has its own.
    let mut abbreviations = None;
    while let Some(unit) = units.next()? {
        let at = unit.debug_abbrev_offset();
        let shared = match abbreviations.take() {
            Some((offset, read)) if offset == at => read,
            _ => unit.abbreviations(&abbrev)?,
        };
        let mut entries = unit.entries_raw(&shared, None)?;
        while !entries.is_empty() {
            if let Some(entry) = entries.read_abbreviation()? {
                entries.skip_attributes(entry.attributes())?;
            }
            deepest = deepest.max(entries.next_depth());
            if deepest > MAX_DEPTH {
                return Ok(deepest);
            }
        }
        abbreviations = Some((at, shared));
    }
    Ok(deepest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One unit (DWARF 4, 32-bit) with `depth` inlined functions inside each other, none of them closed.
    fn nested(depth: usize) -> Vec<u8> {
        let mut unit = vec![4, 0, 0, 0, 0, 0, 8];
        unit.extend(std::iter::repeat_n(1, depth));
        let mut info = u32::try_from(unit.len()).unwrap().to_le_bytes().to_vec();
        info.extend(unit);
        info
    }

    /// Code 1: DW_TAG_inlined_subroutine, has children, no attributes.
    const ABBREV: [u8; 6] = [1, 0x1d, 1, 0, 0, 0];

    #[test]
    fn debug_information_that_nests_too_deep_is_refused() {
        assert!(is_sane(&nested(100), &ABBREV));
        assert!(!is_sane(&nested(5_000_000), &ABBREV));
    }

    #[test]
    fn damaged_debug_information_is_refused() {
        assert!(!is_sane(&[0xff; 100], &ABBREV));
        assert!(!is_sane(&nested(3), &[]));
        assert!(is_sane(&[], &[]));
    }
}
