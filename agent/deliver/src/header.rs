//! Headers that go with every request: their values may be passwords, so none is ever shown.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::AsyncReadExt;

/// What a file with a header's value may hold.
const FILE_BYTES: u64 = 16 << 10;
/// A request's own.
const OURS: [&str; 5] = ["content-type", "content-length", "transfer-encoding", "host", "connection"];

#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    name: String,
    value: Source,
}

#[derive(Clone, PartialEq, Eq)]
enum Source {
    Text(String),
    /// Read again for each request: tokens are exchanged under programs that run.
    File(PathBuf),
    /// The same, with `Bearer ` before it.
    Bearer(PathBuf),
}

impl fmt::Debug for Header {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Source::Text(_) => write!(to, "{}=…", self.name),
            Source::File(path) | Source::Bearer(path) => write!(to, "{}=@{}", self.name, path.display()),
        }
    }
}

impl Header {
    /// `NAME=VALUE`, or `NAME=@FILE`. An error does not have the value.
    pub fn parse(text: &str) -> anyhow::Result<Header> {
        let grammar = "a header is NAME=VALUE, or NAME=@FILE for a value that is in a file";
        let (name, value) = text.split_once('=').context(grammar)?;
        let name = name.trim();
        // "Authorization: Bearer abc=" has an equals sign, too, and a password before it.
        let valid = HeaderName::try_from(name);
        let shown = if valid.is_ok() { name } else { "what stands before the = of a header" };
        ensure!(valid.is_ok(), "{shown} is no header's name: {grammar}");
        let own = OURS.iter().any(|own| name.eq_ignore_ascii_case(own));
        ensure!(!own, "the header {name} is podopsy's own to set: leave it out");
        let value = match value.strip_prefix('@') {
            Some(path) => Source::File(path.into()),
            None => Source::Text(value.to_owned()),
        };
        Ok(Header { name: name.to_owned(), value })
    }

    /// `Authorization`, with a token that is in a file by itself.
    pub fn bearer(token: &Path) -> Header {
        Header { name: "Authorization".to_owned(), value: Source::Bearer(token.to_owned()) }
    }

    /// Whether whoever reads it could use it.
    pub fn is_secret(&self) -> bool {
        ["authorization", "proxy-authorization", "cookie"]
            .iter()
            .any(|name| self.name.eq_ignore_ascii_case(name))
            || matches!(self.value, Source::File(_) | Source::Bearer(_))
    }
}

/// The headers of a destination, ready to be sent.
#[derive(Debug)]
pub struct Headers {
    fixed: HeaderMap,
    /// With what comes before their text.
    files: Vec<(HeaderName, &'static str, PathBuf)>,
}

impl Headers {
    /// Each file must be there now; what it holds later is looked at when it is needed.
    pub fn new(all: &[Header]) -> anyhow::Result<Headers> {
        let (mut fixed, mut files) = (HeaderMap::new(), Vec::new());
        for header in all {
            let name = HeaderName::try_from(&header.name)
                .with_context(|| format!("{:?} is no header's name", header.name))?;
            match &header.value {
                Source::Text(text) => {
                    fixed.append(name.clone(), value(&name, text)?);
                }
                Source::File(path) | Source::Bearer(path) => {
                    let text = std::fs::read_to_string(path);
                    let text = text.with_context(|| format!("header {name}: read {}", path.display()))?;
                    value(&name, &text)?;
                    let before = if matches!(header.value, Source::Bearer(_)) { "Bearer " } else { "" };
                    files.push((name, before, path.clone()));
                }
            }
        }
        Ok(Headers { fixed, files })
    }

    /// As they are now.
    pub async fn now(&self) -> anyhow::Result<HeaderMap> {
        let mut all = self.fixed.clone();
        for (name, before, path) in &self.files {
            let text = read(path).await.with_context(|| format!("header {name}: read {}", path.display()))?;
            // Empty is no token, whatever comes before it.
            value(name, &text)?;
            all.append(name.clone(), value(name, &format!("{before}{text}"))?);
        }
        Ok(all)
    }
}

async fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    tokio::fs::File::open(path).await?.take(FILE_BYTES).read_to_string(&mut text).await?;
    Ok(text)
}

fn value(name: &HeaderName, text: &str) -> anyhow::Result<HeaderValue> {
    // A file's last line feed is its editor's.
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "the value of header {name} is empty");
    let value = HeaderValue::try_from(text);
    let mut value =
        value.with_context(|| format!("the value of header {name} has bytes that no header may have"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_never_shown() {
        let header = Header::parse("Authorization=Bearer hunter2=").unwrap();
        assert_eq!(format!("{header:?}"), "Authorization=…");
        assert!(header.is_secret() && !Header::parse("X-Scope-OrgID=shop").unwrap().is_secret());
        let sent = Headers::new(&[header]).unwrap();
        assert_eq!(sent.fixed["authorization"], "Bearer hunter2=");
        assert!(!format!("{sent:?}").contains("hunter2"));
        for wrong in [
            "hunter2",
            "Authorization: Bearer hunter2=",
            "=hunter2",
            "X=hunter2\n\nY",
            "Content-Type=hunter2",
        ] {
            let told = Header::parse(wrong).and_then(|header| Headers::new(&[header])).unwrap_err();
            assert!(!format!("{told:#}").contains("hunter2"), "{told:#}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_for_each_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let header = Header::parse(&format!("Authorization=@{}", path.display())).unwrap();
        let missing = format!("{:#}", Headers::new(std::slice::from_ref(&header)).unwrap_err());
        assert!(missing.contains("header authorization: read ") && missing.contains("token"), "{missing}");
        std::fs::write(&path, "Bearer one\n").unwrap();
        let headers = Headers::new(&[header]).unwrap();
        assert_eq!(headers.now().await.unwrap()["authorization"], "Bearer one");
        std::fs::write(&path, "Bearer two\r\n").unwrap();
        assert_eq!(headers.now().await.unwrap()["authorization"], "Bearer two");
        std::fs::write(&path, "three\n").unwrap();
        let bearer = Headers::new(&[Header::bearer(&path)]).unwrap();
        assert_eq!(bearer.now().await.unwrap()["authorization"], "Bearer three");
        std::fs::write(&path, "\n").unwrap();
        assert!(bearer.now().await.is_err(), "an empty file is no token");
        std::fs::remove_file(&path).unwrap();
        assert!(headers.now().await.is_err());
    }
}
