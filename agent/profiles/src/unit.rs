//! Units of values, and how many of one are in another. Must not depend on: files, formats.

use crate::import::ImportedProfile;

/// What a unit measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    Time,
    Memory,
}

/// A unit as nanoseconds or bytes; none if it is another one. The names are those that `go tool pprof` knows.
fn in_smallest(unit: &str) -> Option<(Quantity, u64)> {
    use Quantity::{Memory, Time};
    Some(match unit.to_ascii_lowercase().trim_end_matches('s') {
        "n" | "nanosecond" => (Time, 1),
        "u" | "µ" | "microsecond" => (Time, 1_000),
        "m" | "millisecond" => (Time, 1_000_000),
        "" | "sec" | "second" => (Time, 1_000_000_000),
        "b" | "byte" => (Memory, 1),
        "kb" | "kib" | "kbyte" | "kilobyte" => (Memory, 1 << 10),
        "mb" | "mib" | "mbyte" | "megabyte" => (Memory, 1 << 20),
        "gb" | "gib" | "gbyte" | "gigabyte" => (Memory, 1 << 30),
        _ => return None,
    })
    .filter(|_| !unit.is_empty())
}

/// Whether values in these units can be compared.
pub fn is_comparable(one: &str, other: &str) -> bool {
    let quantity = |unit| in_smallest(unit).map(|(quantity, _)| quantity);
    one == other || quantity(one).is_some_and(|found| Some(found) == quantity(other))
}

/// Gives two profiles the finer one of their units. False if their units measure different things.
pub fn make_equal(before: &mut ImportedProfile, after: &mut ImportedProfile) -> bool {
    if before.unit == after.unit {
        return true;
    }
    let (Some((quantity, one)), Some((other_quantity, other))) =
        (in_smallest(&before.unit), in_smallest(&after.unit))
    else {
        return false;
    };
    if quantity != other_quantity {
        return false;
    }
    let (coarse, fine, factor) =
        if one >= other { (before, after, one / other) } else { (after, before, other / one) };
    coarse.scale(factor);
    coarse.unit.clone_from(&fine.unit);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::example;

    fn profile(unit: &str, value: u64) -> ImportedProfile {
        let mut profile = example(&[(&["main"], value)]);
        profile.unit = unit.to_owned();
        profile
    }

    #[test]
    fn the_coarser_unit_is_scaled_to_the_finer_one() {
        for (coarse, fine, factor) in
            [("microseconds", "nanoseconds", 1000), ("s", "ms", 1000), ("MiB", "bytes", 1 << 20)]
        {
            let (mut one, mut other) = (profile(coarse, 3), profile(fine, 5));
            assert!(is_comparable(coarse, fine) && make_equal(&mut one, &mut other));
            assert_eq!((one.total(), one.unit.as_str(), other.total()), (3 * factor, fine, 5));
            let (mut one, mut other) = (profile(fine, 5), profile(coarse, 3));
            assert!(make_equal(&mut one, &mut other));
            assert_eq!((one.total(), other.total(), other.unit.as_str()), (5, 3 * factor, fine));
        }
    }

    #[test]
    fn units_of_different_quantities_stay_different() {
        for (one, other) in [("bytes", "nanoseconds"), ("count", "bytes"), ("", "s"), ("count", "")] {
            assert!(!make_equal(&mut profile(one, 1), &mut profile(other, 1)), "{one} and {other}");
            assert!(!is_comparable(one, other) && is_comparable(one, one), "{one} and {other}");
        }
    }
}
