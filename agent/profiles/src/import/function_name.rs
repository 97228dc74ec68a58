//! The name of a function that is the same in two builds of a program: demangled, without what the build adds.
//!
//! Must not depend on: the file format.

use podopsy_demangle::readable;

/// Readable, escaped, and without the hash of Rust's symbols (`::h` and 16 digits) and the number of LLVM's copies
/// (`.llvm.` and digits).
pub(super) fn comparable(name: &[u8]) -> String {
    let mut name = readable(without_copy(name));
    if let Some((function, hash)) = name.rsplit_once("::h")
        && hash.len() == 16
        && hash.bytes().all(|digit| digit.is_ascii_hexdigit())
    {
        name.truncate(function.len());
    }
    name
}

fn without_copy(name: &[u8]) -> &[u8] {
    const MARK: &[u8] = b".llvm.";
    match name.windows(MARK.len()).rposition(|part| part == MARK) {
        Some(at) if name[at + MARK.len()..].iter().all(u8::is_ascii_digit) => &name[..at],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_builds_of_a_function_have_one_name() {
        for (builds, expected) in [
            (["_ZN4shop5price17h0123456789abcdefE", "_ZN4shop5price17hfedcba9876543210E"], "shop::price"),
            (["shop::price::h0123456789abcdef", "shop::price"], "shop::price"),
            (["hash.llvm.1234567890123456789", "hash.llvm.9876543210987654321"], "hash"),
            (["_ZN5store3getEi", "store::get(int)"], "store::get(int)"),
        ] {
            assert_eq!(builds.map(|name| comparable(name.as_bytes())), [expected, expected]);
        }
        assert_eq!(comparable(b"shop::h1"), "shop::h1");
        assert_eq!(comparable(b"a.llvm.x"), "a.llvm.x");
        assert_eq!(comparable(b"\x1b[2J"), "\\x1b[2J");
    }
}
