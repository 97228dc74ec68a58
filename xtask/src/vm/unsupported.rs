//! What a kernel cannot do, and why: the only place where a failing test may be no failure.
//!
//! Each of these tests is run all the same. If it passes, the entry is wrong, and the table says so.

/// Test, the kernel or the trait of the machine, the reason.
const LIST: &[(&str, &str, &str)] = &[];

/// The reason, if the list has one for this test on a machine with these traits.
pub fn reason(test: &str, traits: &[String]) -> Option<&'static str> {
    LIST.iter().find(|(name, on, _)| *name == test && traits.iter().any(|t| t == on)).map(|(_, _, why)| *why)
}
