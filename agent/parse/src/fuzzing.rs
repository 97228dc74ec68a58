//! What is private in this crate and has a fuzz target.

/// The name of a symbol as it is shown.
pub fn demangle(raw: &[u8]) -> String {
    crate::names::readable(raw)
}

/// The bound of its length: the bytes that are kept, and the mark of a cut.
pub const MAX_NAME: usize = crate::names::MAX_NAME + '…'.len_utf8();
