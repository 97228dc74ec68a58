//! Reads the configuration file: TOML with one level. Each value keeps its line for error messages.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use toml::Spanned;
use toml::Value;

/// The size limit of the file, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// A setting in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct FileEntry {
    pub name: String,
    pub values: Vec<String>,
    /// From 1.
    pub line: usize,
}

/// Reads the file. None: there is no such file. An error has the path, the line and the reason.
pub fn read(path: &Path) -> Result<Option<Vec<FileEntry>>, String> {
    let shown = path.display();
    // O_NONBLOCK: opening a named pipe must not wait for a writer.
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| format!("{shown}: {error}"))?,
    };
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(format!("{shown}: it is no regular file"));
    }
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| format!("{shown}: {error}"))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("{shown}: it is longer than {BYTES_MAX} bytes"));
    }
    parse(&text).map(Some).map_err(|(line, why)| format!("{shown}:{line}: {why}"))
}

pub fn parse(text: &str) -> Result<Vec<FileEntry>, (usize, String)> {
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
        let why = format!("{shown} must be a string, a number, true or false, or a list of them");
        out.push(FileEntry { name, values: values.ok_or((line, why))?, line });
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
