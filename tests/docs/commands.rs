//! Finds the commands in the documentation, so that the parsers of the programs can check them.
//!
//! Included by the tests of `podopsy`, `podopsy-agent` and `xtask`, whose argument types are private to each binary.

use std::fs;
use std::path::{Path, PathBuf};

/// A command, without its program's path.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// `file:line`
    pub at: String,
    pub arguments: Vec<String>,
}

/// Every call of `program` with arguments, in code blocks and in inline code.
pub fn calls_of(program: &[&str]) -> Vec<Found> {
    let mut calls = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page is text");
        let name = page.strip_prefix(root()).unwrap_or(&page).display().to_string();
        for (line, code) in code(&text) {
            let found = commands(&code).into_iter().filter_map(|words| arguments(&words, program));
            calls.extend(found.map(|arguments| Found { at: format!("{name}:{line}"), arguments }));
        }
    }
    calls
}

/// What users and contributors read. ARCHITECTURE.md lists subcommands, not calls.
pub fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "manifests/README.md"]
        .map(|name| root().join(name))
        .into();
    add_pages(&root().join("docs"), &mut pages);
    pages
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above each package")
}

fn add_pages(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            add_pages(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
}

/// Lines of fenced blocks (joined where `\` continues one) and inline code, each with the number of its line.
fn code(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut prose, mut in_block, mut continued) = (Vec::new(), String::new(), false, None);
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            let (first, before): (usize, String) = continued.take().unwrap_or((at + 1, String::new()));
            match line.strip_suffix('\\') {
                Some(start) => continued = Some((first, before + start + " ")),
                None => found.push((first, before + line)),
            }
        } else {
            prose += line;
        }
        prose.push('\n');
    }
    let mut line = 1;
    for (at, piece) in prose.split('`').enumerate() {
        if at % 2 == 1 {
            found.push((line, piece.replace('\n', " ")));
        }
        line += piece.matches('\n').count();
    }
    found
}

/// The commands of a shell line, as words: `a | b && kubectl exec x -- c` has four.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands: Vec<Vec<String>> = vec![Vec::new()];
    for word in words(line) {
        let last = commands.last_mut().expect("it begins with one");
        match word.as_str() {
            // `podopsy enter` has the command behind it among its own arguments.
            "--" if last.get(1).is_some_and(|command| command == "enter") => last.push(word),
            "|" | "&&" | ";" | "--" => commands.push(Vec::new()),
            _ => last.push(word),
        }
    }
    commands
}

/// Words, without quotes and without a comment at the end.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => (quote, begun) = (Some(c), true),
            (None, '#') if !begun => break,
            (None, ' ') => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// The arguments, if this calls `program` with any.
fn arguments(words: &[String], program: &[&str]) -> Option<Vec<String>> {
    let is_variable = |word: &String| word.split_once('=').is_some_and(|(name, _)| is_name(name));
    let start = words.iter().position(|word| !(word == "$" || word == "sudo" || is_variable(word)))?;
    let (called, rest) = words[start..].split_at_checked(program.len())?;
    let is_called = called.iter().zip(program).all(|(word, name)| word.rsplit('/').next() == Some(*name));
    let end = rest.iter().position(|word| word.starts_with(['>', '<', '&']) || word.starts_with("2>"));
    let rest = &rest[..end.unwrap_or(rest.len())];
    // `podopsy …` stands for any call.
    (is_called && !rest.is_empty() && rest != ["…"]).then(|| rest.to_vec())
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn commands_are_found_in_blocks_and_in_inline_code() {
    let text = "Run `podopsy oom` or\n`podopsy oom\nshow ID`.\n```sh\n$ sudo A=1 /bin/podopsy pods \\\n  -n x 2>/dev/null # all\n\
                kubectl exec p -- /podopsy dns | grep 'a b'\npodopsy-agent --x\n```\n`podopsy`";
    let found: Vec<(usize, String)> = code(text)
        .into_iter()
        .flat_map(|(line, code)| commands(&code).into_iter().map(move |words| (line, words)))
        .filter_map(|(line, words)| Some((line, arguments(&words, &["podopsy"])?.join(" "))))
        .collect();
    let found: Vec<(usize, &str)> = found.iter().map(|(line, text)| (*line, text.as_str())).collect();
    assert_eq!(found, [(5, "pods -n x"), (7, "dns"), (1, "oom"), (2, "oom show ID")]);
}
