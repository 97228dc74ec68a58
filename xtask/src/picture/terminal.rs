//! What a command printed on a real terminal, with its SGR colours (ECMA-48 §8.3.117), as SVG.
//!
//! Each run of text gets its own position and width, so that columns stay aligned in whatever monospace font the reader has.

use std::fmt::Write as _;

const CHAR_WIDTH: f64 = 8.4;
const LINE_HEIGHT: f64 = 20.0;
const MARGIN: f64 = 22.0;
const TITLE_BAR: f64 = 38.0;

const STYLE: &str = "\
text{white-space:pre;font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d6deeb}\
.bold{font-weight:700;fill:#fff}.dim{fill:#7f92ab}.black{fill:#0f1724}.red{fill:#ff7b72}.green{fill:#7ee787}.yellow{fill:#f2cc60}\
.title{fill:#8b9bb4;text-anchor:middle}";

/// Text of one style, at a column.
#[derive(Debug, PartialEq)]
struct Run {
    column: usize,
    text: String,
    style: Style,
}

/// What SGR sequences have set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Style {
    is_bold: bool,
    is_dim: bool,
    is_inverse: bool,
    colour: &'static str,
    /// Of the palette of 256 colours.
    background: Option<u8>,
}

impl Style {
    const PROMPT: Style =
        Style { is_bold: false, is_dim: false, is_inverse: false, colour: "green", background: None };
    const COMMAND: Style =
        Style { is_bold: true, is_dim: false, is_inverse: false, colour: "", background: None };

    /// Takes the parameters of one sequence.
    fn apply(&mut self, parameters: &str) {
        let mut parameters = parameters.split(';');
        while let Some(parameter) = parameters.next() {
            match parameter {
                "0" | "" => *self = Style::default(),
                "1" => self.is_bold = true,
                "2" => self.is_dim = true,
                "7" => self.is_inverse = true,
                "31" => self.colour = "red",
                "32" => self.colour = "green",
                "33" => self.colour = "yellow",
                "38" | "48" => {
                    // Of 38;5;N, the kind of palette is always 5 here.
                    let number = parameters.nth(1).and_then(|number| number.parse().ok());
                    match (parameter, number) {
                        ("48", number) => self.background = number,
                        (_, Some(1 | 9)) => self.colour = "red",
                        (_, Some(2 | 10)) => self.colour = "green",
                        (_, Some(3 | 11)) => self.colour = "yellow",
                        (_, Some(0)) => self.colour = "black",
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }

    /// The classes of the picture's style sheet.
    fn classes(self) -> String {
        let colour = if self.is_inverse { "black" } else { self.colour };
        let set =
            [("bold", self.is_bold), ("dim", self.is_dim && !self.is_inverse), (colour, !colour.is_empty())];
        set.into_iter().filter(|(_, is_set)| *is_set).map(|(class, _)| class).collect::<Vec<_>>().join(" ")
    }

    /// The colour behind the text.
    fn background(self) -> Option<String> {
        if self.is_inverse {
            return Some("#d6deeb".to_owned());
        }
        // xterm's cube of six levels for red, green and blue.
        let number = self.background.filter(|number| (16..232).contains(number))? - 16;
        let level = |part: u8| if part == 0 { 0 } else { 55 + 40 * part };
        Some(format!("#{:02x}{:02x}{:02x}", level(number / 36), level(number / 6 % 6), level(number % 6)))
    }
}

/// Draws the text: a command line and what it printed.
pub fn svg(text: &str) -> String {
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
            let classes = run.style.classes();
            let class = if classes.is_empty() { String::new() } else { format!(" class=\"{classes}\"") };
            // Writing to a String cannot fail.
            if let Some(colour) = run.style.background() {
                let _ = writeln!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{top:.0}\" width=\"{length:.1}\" height=\"{LINE_HEIGHT:.0}\" fill=\"{colour}\"/>",
                    x = MARGIN + run.column as f64 * CHAR_WIDTH,
                    top = y - 0.8 * LINE_HEIGHT + 2.0,
                    length = run.text.chars().count() as f64 * CHAR_WIDTH,
                );
            }
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
        let prompt = Run { column: 0, text: "$".to_owned(), style: Style::PROMPT };
        return vec![prompt, Run { column: 2, text: command.to_owned(), style: Style::COMMAND }];
    }
    let (mut runs, mut column, mut style) = (Vec::new(), 0, Style::default());
    for (at, piece) in line.split("\x1b[").enumerate() {
        let text = match piece.split_once('m').filter(|_| at > 0) {
            Some((parameters, text)) => {
                style.apply(parameters);
                text
            }
            None => piece,
        };
        push_words(&mut runs, text, column, style);
        column += text.chars().count();
    }
    runs
}

fn push_words(runs: &mut Vec<Run>, text: &str, mut column: usize, style: Style) {
    // What is behind the text is seen behind spaces, too.
    if style.background().is_some() {
        runs.push(Run { column, text: text.to_owned(), style });
        return;
    }
    for words in text.split("  ") {
        let trimmed = words.trim_start();
        let indent = words.chars().count() - trimmed.chars().count();
        let trimmed = trimmed.trim_end();
        if !trimmed.is_empty() {
            runs.push(Run { column: column + indent, text: trimmed.to_owned(), style });
        }
        column += words.chars().count() + 2;
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_runs_at_their_columns() {
        let shown = |line: &str| -> Vec<(usize, String, String)> {
            runs(line).into_iter().map(|run| (run.column, run.text, run.style.classes())).collect()
        };
        let run = |column, text: &str, class: &str| (column, text.to_owned(), class.to_owned());
        assert_eq!(
            shown("\x1b[2mvictim   \x1b[0mleak[7], rss   9 MiB"),
            [run(0, "victim", "dim"), run(9, "leak[7], rss", ""), run(24, "9 MiB", "")]
        );
        assert_eq!(shown("$ podopsy oom"), [run(0, "$", "green"), run(2, "podopsy oom", "bold")]);
        assert_eq!(shown("\x1b[0;1;38;5;9m94 %\x1b[0m x"), [run(0, "94 %", "bold red"), run(5, "x", "")]);
    }

    #[test]
    fn a_background_is_behind_spaces_too() {
        let picture = svg("$ podopsy top\na \x1b[0;7mb   c\x1b[0m\x1b[0;38;5;0;48;5;208mmain\x1b[0m");
        assert!(picture.contains("fill=\"#d6deeb\"/>\n<text class=\"black\""), "{picture}");
        assert!(picture.contains(">b   c</text>") && picture.contains("fill=\"#ff8700\""), "{picture}");
    }

    #[test]
    fn text_cannot_end_its_element() {
        let picture = svg("call_once<fn(), ()> & more");
        assert!(picture.contains(">call_once&lt;fn(), ()&gt; &amp; more</text>"), "{picture}");
    }
}
