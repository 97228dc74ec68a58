//! The file: TOML, one level, each value with its line.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use toml::Spanned;
use toml::Value;

/// A file that is longer is no configuration.
const MOST: u64 = 1 << 20;

/// A line of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub values: Vec<String>,
    /// From 1.
    pub line: usize,
}

/// None: there is no such file. An error names the file, the line and what is wrong.
pub fn read(path: &Path) -> Result<Option<Vec<Entry>>, String> {
    let shown = path.display();
    // Not to wait for the writer of a pipe.
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| format!("{shown}: {error}"))?,
    };
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(format!("{shown}: it is no regular file"));
    }
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text).map_err(|error| format!("{shown}: {error}"))?;
    if text.len() as u64 > MOST {
        return Err(format!("{shown}: it is longer than {MOST} bytes"));
    }
    parse(&text).map(Some).map_err(|(line, why)| format!("{shown}:{line}: {why}"))
}

pub fn parse(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let line_at = |at: usize| text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1;
    type Table = std::collections::BTreeMap<Spanned<String>, Spanned<Value>>;
    let table: Table = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (line_at(at), podopsy_model::text::escape(error.message()))
    })?;
    let mut out = Vec::new();
    for (key, value) in table {
        let line = line_at(key.span().start);
        let name = key.into_inner();
        let values = match value.into_inner() {
            Value::Array(all) => all.iter().map(scalar).collect::<Option<Vec<_>>>(),
            one => scalar(&one).map(|one| vec![one]),
        };
        let shown = podopsy_model::text::escape(&name);
        let why = format!("{shown} takes a text, a number, true or false, or a list of them");
        out.push(Entry { name, values: values.ok_or((line, why))?, line });
    }
    out.sort_by_key(|entry| entry.line);
    Ok(out)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(yes) => Some(yes.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}
