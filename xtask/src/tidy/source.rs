//! A Rust file, line by line, with code, strings and comments separated: a rule about code must not match a comment that
//! explains it, or the text of an error message.

/// A file and its lines.
pub struct Source {
    /// Relative to the workspace, with `/`.
    pub path: String,
    pub lines: Vec<Line>,
}

/// One line. Its number is its index in [`Source::lines`], from 1.
#[derive(Default)]
pub struct Line {
    /// The line as it is in the file.
    pub raw: String,
    /// The code, without comments and without the contents of strings.
    pub code: String,
    /// The contents of the strings.
    pub strings: String,
    /// The text of comments, with their slashes.
    pub comment: String,
    /// Whether it is below the file's first `#[cfg(test)]` module, where fixtures may contain anything.
    pub in_tests: bool,
}

enum LexerState {
    Code,
    /// Nested block comments.
    Block(u32),
    /// A string; with `Some(n)` a raw one that ends with a quote and n hashes.
    Str(Option<usize>),
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let mut state = LexerState::Code;
        let mut lines: Vec<Line> = text.lines().map(|raw| split(raw, &mut state)).collect();
        let is_test_module = |(i, line): &(usize, &Line)| {
            let next = lines.get(i + 1).map_or("", |l| l.code.trim_start());
            line.code.trim() == "#[cfg(test)]" && (next.starts_with("mod ") || next.starts_with("pub mod "))
        };
        let tests = lines.iter().enumerate().find(is_test_module).map(|(i, _)| i);
        // A module declared in another file (`mod tests;`) ends at once.
        if let Some(start) = tests
            && !lines.get(start + 1).is_some_and(|l| l.code.trim_end().ends_with(';'))
        {
            lines[start..].iter_mut().for_each(|line| line.in_tests = true);
        }
        Self { path: path.to_owned(), lines }
    }

    /// Whether a program wrote the file: its first lines contain `@generated`.
    pub fn is_generated(&self) -> bool {
        self.lines.iter().take(5).any(|line| line.comment.contains("@generated"))
    }
}

fn split(raw: &str, state: &mut LexerState) -> Line {
    let mut line = Line { raw: raw.to_owned(), ..Line::default() };
    let chars: Vec<char> = raw.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        match state {
            LexerState::Block(depth) => {
                if at(i) == '*' && at(i + 1) == '/' {
                    *depth -= 1;
                    if *depth == 0 {
                        *state = LexerState::Code;
                    }
                    i += 2;
                } else if at(i) == '/' && at(i + 1) == '*' {
                    *depth += 1;
                    i += 2;
                } else {
                    line.comment.push(at(i));
                    i += 1;
                }
            }
            LexerState::Str(None) if at(i) == '\\' => {
                line.strings.extend(&chars[i..(i + 2).min(chars.len())]);
                i += 2;
            }
            LexerState::Str(raw_hashes) => {
                let hashes = raw_hashes.unwrap_or(0);
                if at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#') {
                    *state = LexerState::Code;
                    line.code.push('"');
                    line.strings.push(' ');
                    i += 1 + hashes;
                } else {
                    line.strings.push(at(i));
                    i += 1;
                }
            }
            LexerState::Code if at(i) == '/' && at(i + 1) == '/' => {
                line.comment.extend(&chars[i..]);
                break;
            }
            LexerState::Code if at(i) == '/' && at(i + 1) == '*' => {
                *state = LexerState::Block(1);
                i += 2;
            }
            LexerState::Code => {
                let starts_word = i == 0 || !(at(i - 1).is_alphanumeric() || at(i - 1) == '_');
                if let Some((length, kind)) = string_start(&chars[i..], starts_word) {
                    line.code.push('"');
                    *state = LexerState::Str(kind);
                    i += length;
                } else {
                    let length = if at(i) == '\'' { char_literal(&chars[i..]) } else { 1 };
                    line.code.push(if length > 1 { '\'' } else { at(i) });
                    i += length;
                }
            }
        }
    }
    line
}

/// The length of the opening of a string (`"`, `r#"`, `b"`, `br"`, `c"`), and its kind.
fn string_start(chars: &[char], starts_word: bool) -> Option<(usize, Option<usize>)> {
    if chars[0] == '"' {
        return Some((1, None));
    }
    let prefix = chars.iter().take(2).take_while(|c| "bcr".contains(**c)).count();
    if prefix == 0 || !starts_word {
        return None;
    }
    let hashes = chars[prefix..].iter().take_while(|c| **c == '#').count();
    let is_raw = chars[prefix - 1] == 'r';
    if chars.get(prefix + hashes) != Some(&'"') || (hashes > 0 && !is_raw) {
        return None;
    }
    Some((prefix + hashes + 1, is_raw.then_some(hashes)))
}

/// The length of a character literal, or 1 if the quote begins a lifetime.
fn char_literal(chars: &[char]) -> usize {
    match (chars.get(1), chars.get(2)) {
        (Some('\\'), Some(_)) => chars.iter().skip(3).position(|c| *c == '\'').map_or(1, |n| n + 4),
        (Some(_), Some('\'')) => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Line {
        Source::new("x.rs", text).lines.swap_remove(0)
    }

    #[test]
    fn code_strings_and_comments_are_separated() {
        let line = only(r#"let a = f("// no \" comment", 'x', b'\'', r"\"); // why"#);
        assert_eq!(line.code, r#"let a = f("", ', b', ""); "#);
        assert_eq!(line.comment, "// why");
        assert!(line.strings.contains("no \\\" comment"));
    }

    #[test]
    fn lifetimes_are_not_characters_and_identifiers_are_not_prefixes() {
        assert_eq!(only("fn f<'a>(x: &'a str) // c").code, "fn f<'a>(x: &'a str) ");
        assert_eq!(only(r#"attr"x""#).code, r#"attr"""#);
    }

    #[test]
    fn raw_strings_and_block_comments_span_lines() {
        let source = Source::new("x.rs", "let a = r#\"one\n unsafe { \" }\n\"#; /* b\n /* c */ d\n */ e");
        let code: Vec<_> = source.lines.iter().map(|l| l.code.trim()).collect();
        assert_eq!(code, ["let a = \"", "", "\";", "", "e"]);
        assert!(source.lines[1].strings.contains("unsafe {") && source.lines[3].comment.contains('d'));
    }

    #[test]
    fn every_line_below_the_test_module_is_in_tests() {
        let source = Source::new("x.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}");
        assert_eq!(
            source.lines.iter().map(|l| l.in_tests).collect::<Vec<_>>(),
            [false, true, true, true, true]
        );
        let source = Source::new("x.rs", "#[cfg(test)]\nmod tests;\nfn a() {}");
        assert!(!source.lines[2].in_tests);
    }
}
