//! kubectl's JSONPath templates: text, `{path}`, `{range path}…{end}` and `{"quoted text"}`.
//!
//! The paths are those of RFC 9535, which has all that kubectl documents: fields, `[*]`, indexes, slices, unions, `..` and
//! filters such as `[?(@.state=="running")]`. What kubectl writes differently is translated: a path may begin with `.` instead
//! of `$`, and a name may have hyphens, slashes and escaped dots.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::terminal::visible;

/// A template. It writes nothing where a path finds nothing, as `kubectl get` does.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Segment>);

#[derive(Clone, Debug, PartialEq)]
enum Segment {
    Text(String),
    Path(JsonPath),
    Range(JsonPath, Vec<Segment>),
}

/// A path, relative to the current object unless it begins with `$`.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    path: serde_json_path::JsonPath,
    is_of_root: bool,
}

/// Why a template or a path cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot read JSONPath {text:?}: {reason}; such as {{.items[*].pod.name}} or {{range .items[*]}}{{.node}}{{\"\\n\"}}{{end}}"
)]
pub struct JsonPathError {
    text: String,
    reason: String,
}

fn error(text: &str, reason: impl Into<String>) -> JsonPathError {
    JsonPathError { text: text.to_owned(), reason: reason.into() }
}

impl JsonPath {
    /// What it finds in `current`, or in `root` if it begins with `$`. A null counts as missing.
    pub fn find<'a>(&self, root: &'a Value, current: &'a Value) -> Vec<&'a Value> {
        let found = self.path.query(if self.is_of_root { root } else { current });
        found.into_iter().filter(|value| !value.is_null()).collect()
    }
}

impl FromStr for JsonPath {
    type Err = JsonPathError;

    /// Also takes a path in braces, and one without the dot at its beginning.
    fn from_str(text: &str) -> Result<JsonPath, JsonPathError> {
        let bare = text.trim();
        let bare = bare.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(bare).trim();
        let is_of_root = bare.starts_with('$');
        let steps = bare.strip_prefix(['$', '@']).unwrap_or(bare);
        let steps = match steps.chars().next() {
            Some('.' | '[') | None => steps.to_owned(),
            Some(_) => format!(".{steps}"),
        };
        let standard = format!("${}", standard_steps(&steps));
        let path = serde_json_path::JsonPath::parse(&standard);
        let path = path.map_err(|reason| error(text, reason.to_string()))?;
        Ok(JsonPath { path, is_of_root })
    }
}

/// Writes names after dots in brackets, where RFC 9535 allows every character.
fn standard_steps(steps: &str) -> String {
    let mut out = String::new();
    let mut rest = steps;
    while let Some(first) = rest.chars().next() {
        if first == '[' {
            let end = bracket_end(rest);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let dots = if rest.starts_with("..") { 2 } else { usize::from(first == '.') };
        let (name, length) = name(&rest[dots..]);
        let is_deep = dots == 2;
        match name.as_str() {
            "" if is_deep => out.push_str(".."),
            // `.[0]` is `[0]` in kubectl.
            "" => {}
            "*" if is_deep => out.push_str("..*"),
            "*" => out.push_str("[*]"),
            name => {
                out.push_str(if is_deep { ".." } else { "" });
                out.push_str(&format!("[{}]", Value::from(name)));
            }
        }
        rest = &rest[dots + length..];
    }
    out
}

/// The name at the beginning, without the backslashes before its dots, and how many bytes it takes.
fn name(text: &str) -> (String, usize) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '.' | '[' => return (name, at),
            '\\' => name.extend(characters.next().map(|(_, next)| next)),
            other => name.push(other),
        }
    }
    (name, text.len())
}

/// Where the bracket that `text` begins with ends. Quoted brackets do not count.
fn bracket_end(text: &str) -> usize {
    let (mut depth, mut quote, mut is_escaped) = (0_usize, None, false);
    for (at, character) in text.char_indices() {
        match (character, quote) {
            _ if is_escaped => is_escaped = false,
            ('\\', Some(_)) => is_escaped = true,
            (own, Some(open)) if own == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(character),
            ('[', None) => depth += 1,
            (']', None) => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

impl FromStr for Template {
    type Err = JsonPathError;

    fn from_str(text: &str) -> Result<Template, JsonPathError> {
        // A path without braces, as kubectl takes it.
        if !text.contains('{') {
            return Ok(Template(vec![Segment::Path(text.parse()?)]));
        }
        // Of each range that is open: its path, and the segments around it.
        let mut open: Vec<(JsonPath, Vec<Segment>)> = Vec::new();
        let mut segments = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if !literal.is_empty() {
                segments.push(Segment::Text(literal.to_owned()));
            }
            let Some(after) = after.strip_prefix('{') else { break };
            let end = brace_end(after).ok_or_else(|| error(text, "a { is not closed"))?;
            let action = after[..end].trim();
            if let Some(path) = action.strip_prefix("range ") {
                open.push((path.parse()?, std::mem::take(&mut segments)));
            } else if action == "end" {
                let (path, around) = open.pop().ok_or_else(|| error(text, "{end} has no {range}"))?;
                let inner = std::mem::replace(&mut segments, around);
                segments.push(Segment::Range(path, inner));
            } else {
                segments.push(segment(action).map_err(|reason| error(text, reason))?);
            }
            rest = &after[end + 1..];
        }
        if open.is_empty() { Ok(Template(segments)) } else { Err(error(text, "{range} has no {end}")) }
    }
}

fn segment(action: &str) -> Result<Segment, String> {
    let quoted = |quote: char| action.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    let text = quoted('"').map(str::to_owned);
    if let Some(text) = text.or_else(|| Some(quoted('\'')?.replace('"', "\\\""))) {
        let text: Result<String, _> = serde_json::from_str(&format!("\"{text}\""));
        return text.map(Segment::Text).map_err(|error| error.to_string());
    }
    action.parse().map(Segment::Path).map_err(|error: JsonPathError| error.reason)
}

/// Where the brace ends that has been opened before `text`. A quoted brace does not count.
fn brace_end(text: &str) -> Option<usize> {
    let (mut quote, mut is_escaped) = (None, false);
    for (at, character) in text.char_indices() {
        match (character, quote) {
            _ if is_escaped => is_escaped = false,
            ('\\', Some(_)) => is_escaped = true,
            (own, Some(open)) if own == open => quote = None,
            ('"' | '\'', None) => quote = Some(character),
            ('}', None) => return Some(at),
            _ => {}
        }
    }
    None
}

impl Template {
    /// What the template makes of `root`.
    pub fn render(&self, root: &Value) -> String {
        let mut out = String::new();
        write_segments(&mut out, &self.0, root, root);
        out
    }
}

fn write_segments(out: &mut String, segments: &[Segment], root: &Value, current: &Value) {
    for segment in segments {
        match segment {
            Segment::Text(text) => out.push_str(text),
            Segment::Path(path) => {
                let found: Vec<String> = path.find(root, current).into_iter().map(text_of).collect();
                out.push_str(&found.join(" "));
            }
            Segment::Range(path, inner) => {
                for element in path.find(root, current) {
                    write_segments(out, inner, root, element);
                }
            }
        }
    }
}

/// A string as it is, and anything else as JSON.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => visible(text),
        other => visible(&other.to_string()),
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list() -> Value {
        json!({ "items": [
            { "pod": { "name": "cart", "labels": { "app.kubernetes.io/name": "shop", "a-b": "1" } }, "restarts": 3,
              "state": "running", "id": null },
            { "pod": { "name": "evil\u{1b}[2J", "labels": {} }, "restarts": 0, "state": "exited", "id": 7 },
        ]})
    }

    #[test]
    fn what_kubectl_documents_is_understood() {
        for (template, expected) in [
            ("{.items[*].restarts}", "3 0"),
            (".items[*].restarts", "3 0"),
            ("items[*].restarts", "3 0"),
            ("{$.items[0].pod.name}", "cart"),
            ("{.items[-1:].restarts}", "0"),
            ("{.items[0]['restarts','state']}", "3 running"),
            ("{..restarts}", "3 0"),
            (r#"{.items[?(@.state=="running")].pod.name}"#, "cart"),
            ("{.items[?(@.restarts>1)].pod.name}", "cart"),
            (r"{.items[*].pod.labels.app\.kubernetes\.io/name}", "shop"),
            ("{.items[0].pod.labels.a-b}", "1"),
            (r#"{range .items[*]}{.restarts}{"\t"}{@.state}{"\n"}{end}"#, "3\trunning\n0\texited\n"),
            (r#"{range .items[*]}[{$.items[0].restarts}]{end}"#, "[3][3]"),
            (r#"<{.items[0].state}{' "}"'}>"#, "<running \"}\">"),
            ("{.items[*].none}", ""),
            ("{.items[*].id}", "7"),
            ("{.items[1].pod.name}", "evil\\x1b[2J"),
            ("{.items[0].pod.labels}", r#"{"a-b":"1","app.kubernetes.io/name":"shop"}"#),
        ] {
            let read: Template = template.parse().unwrap_or_else(|error| panic!("{template}: {error}"));
            assert_eq!(read.render(&list()), expected, "{template}");
        }
    }

    #[test]
    fn ranges_may_be_nested() {
        let template: Template = "{range .items[*]}{range .pod.labels.*}({@}){end};{end}".parse().unwrap();
        assert_eq!(template.render(&list()), "(1)(shop);;");
    }

    #[test]
    fn other_text_is_refused_with_an_example() {
        for text in ["{.items", "{range .items[*]}", "{end}", "{.items[}", "{.items[?(@.x==)]}", "{\"\\q\"}"]
        {
            let error = text.parse::<Template>().unwrap_err().to_string();
            assert!(error.contains("{range .items[*]}{.node}"), "{text}: {error}");
        }
    }
}
