//! Turns a mangled name into the name in the source, within bounds.
//!
//! The name belongs to a container. 270 bytes of a C++ name can stand for terabytes of text, because a name may refer to its
//! own parts again and again. So the text is written into a buffer that refuses more than it may hold. Must not depend on: files.

use std::fmt::{self, Write};
use std::panic::catch_unwind;

use podopsy_model::text::escape_bytes;

/// Bytes of a name that are kept; those of C++ templates can be long.
pub const MAX_NAME: usize = 1024;
/// How deep the parts of a C++ name may nest. Each level can double the time for a name that is damaged: at 96 levels, which
/// is the library's bound, 900 bytes took 7 s. Of 56,000 names of libLLVM and libstdc++, 19 are deeper; they are shown as
/// they are.
const MAX_DEPTH: u32 = 64;
/// A longer mangled name is shown as it is, cut.
const MAX_MANGLED: usize = 16 << 10;

/// The name as it is shown: demangled if it can be, escaped, and cut after [`MAX_NAME`] bytes.
pub fn readable(raw: &[u8]) -> String {
    if raw.len() <= MAX_MANGLED
        && let Ok(name) = std::str::from_utf8(raw)
        && let Some(demangled) = rust(name).or_else(|| cpp(name))
    {
        return shorten(escape_bytes(demangled.as_bytes()));
    }
    shorten(escape_bytes(&raw[..raw.len().min(MAX_NAME + 1)]))
}

fn rust(name: &str) -> Option<String> {
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    let mut out = BoundedText::default();
    // `#` leaves out the hash. An error means that the rest did not fit.
    let _ = write!(out, "{demangled:#}");
    Some(out.text)
}

fn cpp(name: &str) -> Option<String> {
    if !name.starts_with("_Z") && !name.starts_with("__Z") && !name.starts_with("_GLOBAL_") {
        return None;
    }
    // Numbers of a damaged name overflow inside of the library: a panic in builds that check for it.
    catch_unwind(|| structured_cpp(name)).ok().flatten()
}

fn structured_cpp(name: &str) -> Option<String> {
    let options = cpp_demangle::ParseOptions::default().recursion_limit(MAX_DEPTH);
    let symbol = cpp_demangle::Symbol::new_with_options(name, &options).ok()?;
    let mut out = BoundedText::default();
    match symbol.structured_demangle(&mut CppText(&mut out), &cpp_demangle::DemangleOptions::default()) {
        Ok(()) => Some(out.text),
        // The rest did not fit: the beginning is shown.
        Err(_) if out.is_full => Some(out.text),
        Err(_) => None,
    }
}

/// Text of which [`MAX_NAME`] bytes and a character more are kept; more is an error, which ends the writer.
#[derive(Default)]
struct BoundedText {
    text: String,
    is_full: bool,
}

impl Write for BoundedText {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let left = (MAX_NAME + 4).saturating_sub(self.text.len());
        if more.len() <= left {
            self.text.push_str(more);
            return Ok(());
        }
        self.text.push_str(&more[..more.floor_char_boundary(left)]);
        self.is_full = true;
        Err(fmt::Error)
    }
}

struct CppText<'a>(&'a mut BoundedText);

impl cpp_demangle::DemangleWrite for CppText<'_> {
    fn write_string(&mut self, more: &str) -> fmt::Result {
        self.0.write_str(more)
    }
}

/// Cuts a text after [`MAX_NAME`] bytes. Cut text ends in `…`, so that it is not taken for the whole.
pub fn shorten(mut text: String) -> String {
    if text.len() > MAX_NAME {
        text.truncate(text.floor_char_boundary(MAX_NAME));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn names_of_c_cpp_and_rust_are_readable() {
        assert_eq!(readable(b"main"), "main");
        assert_eq!(readable(b"_ZN3foo3barEi"), "foo::bar(int)");
        assert_eq!(readable(b"_ZN4core3fmt5write17h0123456789abcdefE"), "core::fmt::write");
        assert_eq!(readable(b"_RNvCs1234_7mycrate3foo"), "mycrate::foo");
        assert_eq!(readable(b"a\x1bb\xff"), "a\\x1bb\\xff");
    }

    /// A name of some 10 bytes a level, each of which repeats the level before twice.
    fn doubling(levels: usize) -> String {
        let mut name = "_Z1f1AIiiE".to_owned();
        for level in 0..levels {
            let digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
            let number = &digits[level..=level];
            name.push_str(&format!("S_IS{number}_S{number}_E"));
        }
        name
    }

    #[test]
    fn a_short_name_that_stands_for_terabytes_costs_little() {
        for levels in [3, 26, 36] {
            let begin = Instant::now();
            let shown = readable(doubling(levels).as_bytes());
            assert!(shown.starts_with("f(A<int, int>, A<A<int, int>, A<int, int>"), "{shown}");
            assert!(shown.len() <= MAX_NAME + '…'.len_utf8());
            assert!(begin.elapsed() < Duration::from_secs(1), "{levels} levels: {:?}", begin.elapsed());
        }
    }

    /// The parser tries each part in several ways, and the parts of each part again.
    #[test]
    fn a_damaged_name_of_nested_parts_costs_little() {
        let mut name = doubling(9);
        name.push_str(&"S_IS7_S_IS8_S8_ES_IS6_S6_E".repeat(20));
        for len in (100..name.len()).step_by(7) {
            let begin = Instant::now();
            readable(&name.as_bytes()[..len]);
            assert!(begin.elapsed() < Duration::from_secs(1), "{len} bytes: {:?}", begin.elapsed());
        }
    }

    #[test]
    fn a_name_with_the_largest_number_of_a_parameter_is_shown_as_it_is_or_in_part() {
        let name = "_Z1fIJiddEEvDpT9223372036854775807_";
        assert!([name, "void f<int, double, double>()"].contains(&readable(name.as_bytes()).as_str()));
    }

    #[test]
    fn long_names_are_cut_and_marked() {
        let cut = shorten("é".repeat(MAX_NAME));
        assert!(cut.ends_with('…') && cut.len() <= MAX_NAME + '…'.len_utf8());
        assert!(readable(&b"x".repeat(5000)).ends_with('…'));
        assert_eq!(shorten("main".to_string()), "main");
    }
}
