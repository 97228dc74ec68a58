//! Writes the difference of two profiles: folded stacks with two counts, or a flame graph in red (more) and blue
//! (less).
//!
//! Must not depend on: pprof, how profiles are compared. The widths in the flame graph are those of the later profile.

use std::io::Write;

use inferno::flamegraph::{self, Options};

use super::Format;
use super::folded::{escape_trailing_number, push_escaped};
use crate::compare::BeforeAfter;

/// True for the formats that a difference can be written in.
pub fn is_supported(format: Format) -> bool {
    matches!(format, Format::Folded | Format::Svg)
}

/// Writes stacks (outermost first) with their values before and after.
pub fn write<'a>(
    format: Format,
    title: &str,
    stacks: impl Iterator<Item = (&'a [&'a str], BeforeAfter)>,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let lines =
        stacks.map(|(stack, BeforeAfter { before, after })| format!("{} {before} {after}", line(stack)));
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
        other => anyhow::bail!("a difference cannot be written as {}: use .folded or .svg", other.as_str()),
    }
    Ok(())
}

fn line(stack: &[&str]) -> String {
    let mut line = String::new();
    for (index, name) in stack.iter().enumerate() {
        if index > 0 {
            line.push(';');
        }
        push_escaped(&mut line, name);
    }
    if line.is_empty() {
        line.push_str("[no stack]");
    }
    escape_trailing_number(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "</text><script>alert(1)</script>;\n& 5";

    fn written(format: Format) -> String {
        let stacks: [(&[&str], BeforeAfter); 3] = [
            (&["main", "hash"], BeforeAfter { before: 10, after: 40 }),
            (&["main", "gone"], BeforeAfter { before: 30, after: 0 }),
            (&["main", HOSTILE], BeforeAfter { before: 5, after: 5 }),
        ];
        let mut out = Vec::new();
        write(format, "<b>", stacks.into_iter(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_folded_line_has_two_counts_and_one_field_per_frame() {
        let text = written(Format::Folded);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(&lines[..2], ["main;hash 10 40", "main;gone 30 0"]);
        assert!(lines[2].ends_with("&\\x205 5 5") && lines[2].matches(';').count() == 1, "{text}");
    }

    #[test]
    fn the_flame_graph_is_well_formed_and_shows_the_change_of_each_function() {
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
        assert_eq!(svg.matches("<script").count(), 1, "only inferno's script may be there");
    }

    #[test]
    fn a_difference_is_not_written_in_other_formats() {
        assert!(!is_supported(Format::Pprof));
        assert!(write(Format::Pprof, "", std::iter::empty(), Vec::new()).is_err());
    }
}
