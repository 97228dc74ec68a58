//! Untrusted bytes to printable text.
//!
//! An attacker can choose comms, labels, paths and DNS names, and a terminal executes the control sequences that it prints.
//! So everything that is not plainly printable becomes `\xNN` (a byte) or `\u{NNNN}` (a character).

/// Escapes untrusted bytes: valid, printable UTF-8 stays, the rest becomes `\xNN` or `\u{N}`.
/// A backslash is doubled, so that the escape cannot be forged.
pub fn escape_bytes(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        push_escaped(&mut out, chunk.valid());
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// [`escape_bytes`] for text that is UTF-8 already, such as CRI fields.
pub fn escape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    push_escaped(&mut out, raw);
    out
}

/// Escapes a fixed-size, NUL-padded kernel string such as `task_struct.comm`.
pub fn from_kernel(raw: &[u8]) -> String {
    let end = raw.iter().position(|&b| b == 0).unwrap_or(raw.len());
    escape_bytes(&raw[..end])
}

/// The longest string, in characters. Kubernetes allows 253 for a name and 317 for a label's key; an image reference may be
/// longer, and a hostile one is.
pub const FIELD_MAX: usize = 512;

/// Escapes the text and cuts it at [`FIELD_MAX`] characters; a cut text ends in `...`.
pub fn field(raw: &str) -> String {
    let cut = raw.char_indices().nth(FIELD_MAX).map(|(at, _)| at);
    match cut {
        Some(at) => escape(&raw[..at]) + "...",
        None => escape(raw),
    }
}

/// Escapes control characters, and characters that reorder or hide text. The last check before a terminal.
///
/// Untrusted strings have already been escaped at their source. Those escapes, and podopsy's own arrows and dots, stay as
/// they are: escaping twice changes nothing.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            code @ (0..0x20 | 0x7f) => out.push_str(&format!("\\x{code:02x}")),
            // C1 controls, soft hyphen, zero-width and bidirectional marks, BOM, tags.
            0x80..=0x9f
            | 0xad
            | 0x61c
            | 0x200b..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0xfeff
            | 0xe0000..=0xe007f => out.extend(c.escape_unicode()),
            _ => out.push(c),
        }
    }
    out
}

fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            c if u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if is_plain(c) => out.push(c),
            c => out.extend(c.escape_unicode()),
        }
    }
}

/// Whether a character beyond ASCII is printed as it is: letters and digits of any script are. Controls, bidirectional
/// overrides, joiners, private use and everything else that can deceive a reader are not.
fn is_plain(c: char) -> bool {
    c.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_invisible_characters_are_escaped() {
        assert_eq!(visible("a\x1b[2J\u{9b}\u{202e}b\u{7f}"), "a\\x1b[2J\\u{9b}\\u{202e}b\\x7f");
        assert_eq!(visible("leak[1] → 5.0 µs … \\x1b café"), "leak[1] → 5.0 µs … \\x1b café");
    }

    #[test]
    fn printable_text_stays() {
        assert_eq!(escape("checkout-api café 東京"), "checkout-api café 東京");
    }

    #[test]
    fn control_sequences_cannot_reach_a_terminal() {
        assert_eq!(escape("\x1b[2J\u{9b}31m"), "\\x1b[2J\\u{9b}31m");
        assert_eq!(escape("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(escape_bytes(b"x\xff\x07y"), "x\\xff\\x07y");
    }

    #[test]
    fn the_escape_cannot_be_forged() {
        assert_eq!(escape("\\x1b"), "\\\\x1b");
    }

    #[test]
    fn kernel_strings_end_at_the_first_nul() {
        assert_eq!(from_kernel(b"sh\0garbage"), "sh");
        assert_eq!(from_kernel(b"full"), "full");
    }

    #[test]
    fn strings_are_escaped_and_cut() {
        assert_eq!(field("a\x1b[2J"), "a\\x1b[2J");
        assert_eq!(field(&"é".repeat(FIELD_MAX + 1)), "é".repeat(FIELD_MAX) + "...");
    }
}
