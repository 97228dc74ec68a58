//! `cargo xtask picture`: draws terminal output that is kept in docs/images/ as SVG.
//!
//! The input is what a command printed on a real terminal, with its SGR colours (ECMA-48 §8.3.117). Each run of text gets
//! its own position and width, so that columns stay aligned in whatever monospace font the reader has.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::sh;

const IMAGES: &str = "docs/images";
const CHAR_WIDTH: f64 = 8.4;
const LINE_HEIGHT: f64 = 20.0;
const MARGIN: f64 = 22.0;
const TITLE_BAR: f64 = 38.0;

const STYLE: &str = "\
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d6deeb}\
.bold{font-weight:700;fill:#fff}.dim{fill:#7f92ab}.red{fill:#ff7b72}.green{fill:#7ee787}.yellow{fill:#f2cc60}\
.title{fill:#8b9bb4;text-anchor:middle}";

/// The command: a picture beside each text.
pub fn run() -> Result<()> {
    for entry in fs::read_dir(sh::root().join(IMAGES)).context(IMAGES)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let picture = path.with_extension("svg");
            fs::write(&picture, draw(&path)?).with_context(|| picture.display().to_string())?;
            sh::progress(format_args!("{}", picture.display()));
        }
    }
    Ok(())
}

fn draw(path: &Path) -> Result<String> {
    Ok(svg(&fs::read_to_string(path).with_context(|| path.display().to_string())?))
}

/// Text of one style, at a column.
#[derive(Debug, PartialEq)]
struct Run {
    column: usize,
    text: String,
    class: &'static str,
}

fn svg(text: &str) -> String {
    let lines: Vec<Vec<Run>> = text.lines().map(runs).collect();
    let end = |run: &Run| run.column + run.text.chars().count();
    let columns = lines.iter().flatten().map(end).max().unwrap_or(0);
    let width = columns as f64 * CHAR_WIDTH + 2.0 * MARGIN;
    let height = lines.len() as f64 * LINE_HEIGHT + TITLE_BAR + MARGIN;
    let title = text.lines().next().unwrap_or_default().trim_start_matches("$ ");
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"10\" fill=\"#0f1724\"/>\n\
         <path d=\"M0 10a10 10 0 0 1 10-10h{bar:.0}a10 10 0 0 1 10 10v20H0z\" fill=\"#1c2738\"/>\n\
         <circle cx=\"20\" cy=\"15\" r=\"6\" fill=\"#ff5f57\"/><circle cx=\"40\" cy=\"15\" r=\"6\" fill=\"#febc2e\"/>\
         <circle cx=\"60\" cy=\"15\" r=\"6\" fill=\"#28c840\"/>\n\
         <text class=\"title\" x=\"{middle:.0}\" y=\"20\">{title}</text>\n",
        title = escape(title),
        bar = width - 20.0,
        middle = width / 2.0,
    );
    for (row, line) in lines.iter().enumerate() {
        let y = TITLE_BAR + (row as f64 + 0.8) * LINE_HEIGHT;
        for run in line {
            let class =
                if run.class.is_empty() { String::new() } else { format!(" class=\"{}\"", run.class) };
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "<text{class} x=\"{x:.1}\" y=\"{y:.0}\" textLength=\"{length:.1}\">{text}</text>",
                x = MARGIN + run.column as f64 * CHAR_WIDTH,
                length = run.text.chars().count() as f64 * CHAR_WIDTH,
                text = escape(&run.text),
            );
        }
    }
    out + "</svg>\n"
}

/// A line in pieces: of one style, without leading, trailing or double spaces.
fn runs(line: &str) -> Vec<Run> {
    // The prompt is not the program's output: it has no colour of its own.
    if let Some(command) = line.strip_prefix("$ ") {
        let prompt = Run { column: 0, text: "$".to_owned(), class: "green" };
        return vec![prompt, Run { column: 2, text: command.to_owned(), class: "bold" }];
    }
    let (mut runs, mut column, mut class) = (Vec::new(), 0, "");
    for (at, piece) in line.split("\x1b[").enumerate() {
        let text = match piece.split_once('m').filter(|_| at > 0) {
            Some((code, text)) => {
                class = class_of(code);
                text
            }
            None => piece,
        };
        push_words(&mut runs, text, column, class);
        column += text.chars().count();
    }
    runs
}

fn push_words(runs: &mut Vec<Run>, text: &str, mut column: usize, class: &'static str) {
    for words in text.split("  ") {
        let trimmed = words.trim_start();
        let indent = words.chars().count() - trimmed.chars().count();
        let trimmed = trimmed.trim_end();
        if !trimmed.is_empty() {
            runs.push(Run { column: column + indent, text: trimmed.to_owned(), class });
        }
        column += words.chars().count() + 2;
    }
}

fn class_of(code: &str) -> &'static str {
    match code {
        "1" => "bold",
        "2" => "dim",
        "31" => "red",
        "32" => "green",
        "33" => "yellow",
        _ => "",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_pictures_are_what_their_texts_make() {
        let mut pictures = 0;
        for entry in fs::read_dir(sh::root().join(IMAGES)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "txt") {
                let committed = fs::read_to_string(path.with_extension("svg")).unwrap();
                assert!(committed == draw(&path).unwrap(), "{}: run cargo xtask picture", path.display());
                pictures += 1;
            }
        }
        assert!(pictures > 0, "no text in {IMAGES}");
    }

    #[test]
    fn a_line_becomes_runs_at_their_columns() {
        let run = |column, text: &str, class| Run { column, text: text.to_owned(), class };
        assert_eq!(
            runs("\x1b[2mvictim   \x1b[0mleak[7], rss   9 MiB"),
            [run(0, "victim", "dim"), run(9, "leak[7], rss", ""), run(24, "9 MiB", "")]
        );
        assert_eq!(runs("$ podopsy oom"), [run(0, "$", "green"), run(2, "podopsy oom", "bold")]);
    }

    #[test]
    fn text_cannot_end_its_element() {
        let picture = svg("call_once<fn(), ()> & more");
        assert!(picture.contains(">call_once&lt;fn(), ()&gt; &amp; more</text>"), "{picture}");
    }
}
