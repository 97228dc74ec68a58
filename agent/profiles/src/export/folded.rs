//! Folded stacks: `owner;comm;outermost;…;innermost count`, one line per stack, as introduced by flamegraph.pl.
//!
//! Must not depend on: SVG, pprof.
//!
//! Kernel frames end in `_[k]` and inlined ones in `_[i]`; flame graph tools colour by these suffixes. A `;` or a
//! control character in a name is escaped (`\x3b`), so that a name cannot add frames to a line.

use std::collections::BTreeMap;
use std::io::Write;

use super::{is_kernel, owner_path};
use podopsy_model::profile::{Frame, Profile, Sample};

/// Writes `profile` as folded stacks, one line per stack, sorted. Threads of a process are counted together.
pub fn write(profile: &Profile, mut out: impl Write) -> anyhow::Result<()> {
    for (stack, count) in fold(profile) {
        writeln!(out, "{stack} {count}")?;
    }
    Ok(())
}

/// Stack → count.
pub(super) fn fold(profile: &Profile) -> BTreeMap<String, u64> {
    let mut folded = BTreeMap::new();
    for sample in &profile.samples {
        *folded.entry(line(sample)).or_insert(0) += sample.count;
    }
    folded
}

/// The stack of a sample as a folded line without its count.
fn line(sample: &Sample) -> String {
    let mut line = String::new();
    push_escaped(&mut line, &owner_path(&sample.owner));
    line.push(';');
    push_escaped(&mut line, &sample.comm);
    for frame in sample.stack.iter().rev() {
        line.push(';');
        push_escaped(&mut line, &frame.display_name());
        line.push_str(suffix(frame));
    }
    escape_trailing_number(line)
}

fn suffix(frame: &Frame) -> &'static str {
    match (is_kernel(frame), frame.inlined) {
        (true, _) => "_[k]",
        (false, true) => "_[i]",
        (false, false) => "",
    }
}

/// Escapes the space before a number at the end of a stack: a reader would take it for a count.
pub(super) fn escape_trailing_number(stack: String) -> String {
    match stack.rsplit_once(' ') {
        Some((head, last)) if last.starts_with(|c: char| c.is_ascii_digit()) => format!("{head}\\x20{last}"),
        _ => stack,
    }
}

/// Appends a frame's name. A reader cannot take it for two frames, nor for a comment.
pub(super) fn push_escaped(line: &mut String, name: &str) {
    let starts_line = line.is_empty();
    for (index, c) in name.chars().enumerate() {
        match c {
            // `#` at the start of a line makes it a comment.
            '#' if starts_line && index == 0 => line.push_str("\\x23"),
            ';' => line.push_str("\\x3b"),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::example;

    #[test]
    fn folded_lines_read_back_as_the_original_stacks() {
        let mut text = Vec::new();
        write(&example::profile(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let parse = |line: &str| {
            let (stack, count) = line.rsplit_once(' ').unwrap();
            (stack.split(';').map(String::from).collect::<Vec<_>>(), count.parse::<u64>().unwrap())
        };
        let lines: Vec<_> = text.lines().map(parse).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines.iter().map(|(_, count)| count).sum::<u64>(), 45);
        let (stack, count) = lines.iter().find(|(stack, _)| stack[1] == "checkout").unwrap();
        let frames = [
            "shop/checkout-0/api",
            "checkout",
            "main",
            "checkout+0x1500",
            "cart::total",
            "cart::price_[i]",
            "schedule_[k]",
        ];
        assert_eq!((stack.as_slice(), *count), (frames.map(String::from).as_slice(), 30));
        assert!(text.contains("host;systemd;[no mapping]+0x7f00 3\n"));
        // The name contains `;` and a newline and ends in a number. It must still be one frame.
        let hostile = lines.iter().find(|(stack, _)| stack[1].starts_with("ev")).unwrap();
        assert_eq!((hostile.0.len(), hostile.1), (4, 12), "{text}");
        assert!(hostile.0[3].ends_with("&\\x205"), "{text}");
    }
}
