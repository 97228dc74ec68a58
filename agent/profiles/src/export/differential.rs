//! Two profiles as one picture: folded stacks with two counts, and a flame graph in red (more) and blue (less).
//!
//! Must not know: pprof, how profiles are compared. The widths are those of the profile after.

use std::io::Write;

use inferno::flamegraph::{self, Options};

use super::Format;
use super::folded::push;
use crate::compare::Pair;

/// Can it be written in this format?
pub fn takes(format: Format) -> bool {
    matches!(format, Format::Folded | Format::Svg)
}

/// Writes stacks (outermost first) with their values before and after.
pub fn write<'a>(
    format: Format,
    title: &str,
    stacks: impl Iterator<Item = (&'a [&'a str], Pair)>,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let lines = stacks.map(|(stack, Pair { before, after })| format!("{} {before} {after}", line(stack)));
    match format {
        Format::Folded => {
            for line in lines {
                writeln!(out, "{line}")?;
            }
        }
        Format::Svg => {
            let mut lines: Vec<String> = lines.collect();
            if lines.is_empty() {
                lines.push("(no samples) 1 1".to_owned());
            }
            let mut options = Options::default();
            options.title = super::svg::printable(title);
            options.subtitle = Some("red: more than before; blue: less; widths: after".to_owned());
            options.deterministic = true;
            flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)?;
        }
        other => anyhow::bail!("a difference cannot be written as {}: take .folded or .svg", other.name()),
    }
    Ok(())
}

fn line(stack: &[&str]) -> String {
    let mut line = String::new();
    for (index, name) in stack.iter().enumerate() {
        if index > 0 {
            line.push(';');
        }
        push(&mut line, name);
    }
    if line.is_empty() {
        line.push_str("[no stack]");
    }
    // ` 5` at the end of a name would be read as a count, and so would the two before.
    match line.rsplit_once(' ') {
        Some((head, last)) if last.starts_with(|c: char| c.is_ascii_digit()) => format!("{head}\\x20{last}"),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "</text><script>alert(1)</script>;\n& 5";

    fn written(format: Format) -> String {
        let stacks: [(&[&str], Pair); 3] = [
            (&["main", "hash"], Pair { before: 10, after: 40 }),
            (&["main", "gone"], Pair { before: 30, after: 0 }),
            (&["main", HOSTILE], Pair { before: 5, after: 5 }),
        ];
        let mut out = Vec::new();
        write(format, "<b>", stacks.into_iter(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn folded_lines_have_two_counts_and_as_many_frames_as_there_are() {
        let text = written(Format::Folded);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(&lines[..2], ["main;hash 10 40", "main;gone 30 0"]);
        assert!(lines[2].ends_with("&\\x205 5 5") && lines[2].matches(';').count() == 1, "{text}");
    }

    #[test]
    fn the_picture_is_whole_and_says_how_much_more() {
        let svg = written(Format::Svg);
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(&svg, options).unwrap();
        let titles: Vec<_> = document
            .descendants()
            .filter(|node| node.tag_name().name() == "title")
            .filter_map(|node| node.text())
            .collect();
        assert!(
            titles.iter().any(|title| title.starts_with("hash (40 samples") && title.contains('+')),
            "{titles:?}"
        );
        assert_eq!(svg.matches("<script").count(), 1, "inferno's own");
    }

    #[test]
    fn other_formats_are_refused() {
        assert!(!takes(Format::Pprof));
        assert!(write(Format::Pprof, "", std::iter::empty(), Vec::new()).is_err());
    }
}
