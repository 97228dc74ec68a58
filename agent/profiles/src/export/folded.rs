//! Folded stacks: `owner;comm;outermost;…;innermost count`, one line a stack, as flamegraph.pl made them common.
//!
//! Must not know: SVG, pprof.
//!
//! Kernel frames end in `_[k]` and inlined ones in `_[i]` (flame graph tools colour by it). A `;` or control character
//! in a name is written `\x3b`, so that every line has the frames it should have.

use std::collections::BTreeMap;
use std::io::Write;

use super::{frame_name, is_kernel, owner_name};
use podopsy_model::profile::{Frame, Profile, Sample};

/// Writes `profile` as folded stacks, one line a stack, sorted. Threads of a process are counted together.
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

fn line(sample: &Sample) -> String {
    let mut line = String::new();
    push(&mut line, &owner_name(&sample.owner));
    line.push(';');
    push(&mut line, &sample.comm);
    for frame in sample.stack.iter().rev() {
        line.push(';');
        push(&mut line, &frame_name(frame));
        line.push_str(suffix(frame));
    }
    // ` 5` at the end of a name would be read as a count.
    match line.rsplit_once(' ') {
        Some((head, last)) if last.starts_with(|c: char| c.is_ascii_digit()) => format!("{head}\\x20{last}"),
        _ => line,
    }
}

fn suffix(frame: &Frame) -> &'static str {
    match (is_kernel(frame), frame.inlined) {
        (true, _) => "_[k]",
        (false, true) => "_[i]",
        (false, false) => "",
    }
}

/// Appends a name that no reader can take for two, or for a count.
pub(super) fn push(line: &mut String, name: &str) {
    let starts_line = line.is_empty();
    for (index, c) in name.chars().enumerate() {
        match c {
            // `# ` at the start of a line makes it a comment.
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
    fn lines_read_back_as_the_stacks_they_were() {
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
        // One frame in spite of its `;`, its newline, and the number that it ends with.
        let hostile = lines.iter().find(|(stack, _)| stack[1].starts_with("ev")).unwrap();
        assert_eq!((hostile.0.len(), hostile.1), (4, 12), "{text}");
        assert!(hostile.0[3].ends_with("&\\x205"), "{text}");
    }
}
