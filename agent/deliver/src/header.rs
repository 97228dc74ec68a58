//! Headers that are sent with every request. Their values may be passwords, so no value is ever printed.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::AsyncReadExt;

/// The number of bytes of a header file that are read.
const MAX_FILE_BYTES: u64 = 16 << 10;
/// The headers that podopsy sets itself.
const RESERVED: [&str; 5] = ["content-type", "content-length", "transfer-encoding", "host", "connection"];

/// One header for a destination, as the user set it.
#[derive(Clone, PartialEq, Eq)]
pub struct ExportHeader {
    name: String,
    value: HeaderSource,
}

#[derive(Clone, PartialEq, Eq)]
enum HeaderSource {
    Text(String),
    /// Read for each request, because tokens are replaced while programs run.
    File(PathBuf),
    /// Like `File`, with `Bearer ` in front of the file's text.
    Bearer(PathBuf),
}

impl fmt::Debug for ExportHeader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            HeaderSource::Text(_) => write!(formatter, "{}=…", self.name),
            HeaderSource::File(path) | HeaderSource::Bearer(path) => {
                write!(formatter, "{}=@{}", self.name, path.display())
            }
        }
    }
}

impl ExportHeader {
    /// Parses `NAME=VALUE` or `NAME=@FILE`. The error does not contain the value.
    pub fn parse(text: &str) -> anyhow::Result<ExportHeader> {
        let grammar = "use NAME=VALUE, or NAME=@FILE for a value that is in a file";
        let (name, value) = text.split_once('=').context(grammar)?;
        let name = name.trim();
        // Not printed if invalid: "Authorization: Bearer abc=" also has an equals sign, with a password in front of it.
        ensure!(
            HeaderName::try_from(name).is_ok(),
            "the text before the = is not a header's name: {grammar}"
        );
        let is_reserved = RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
        ensure!(!is_reserved, "podopsy sets the header {name} itself: leave it out");
        let value = match value.strip_prefix('@') {
            Some(path) => HeaderSource::File(path.into()),
            None => HeaderSource::Text(value.to_owned()),
        };
        Ok(ExportHeader { name: name.to_owned(), value })
    }

    /// `Authorization: Bearer`, with the token that is the content of a file.
    pub fn bearer(token: &Path) -> ExportHeader {
        ExportHeader { name: "Authorization".to_owned(), value: HeaderSource::Bearer(token.to_owned()) }
    }

    /// Whether the value is likely to be a password or a token.
    pub fn is_secret(&self) -> bool {
        ["authorization", "proxy-authorization", "cookie"]
            .iter()
            .any(|name| self.name.eq_ignore_ascii_case(name))
            || matches!(self.value, HeaderSource::File(_) | HeaderSource::Bearer(_))
    }
}

/// The headers of a destination, ready to be sent.
#[derive(Debug)]
pub struct RequestHeaders {
    fixed: HeaderMap,
    /// The name, the prefix of the value, and the file with the rest of it.
    files: Vec<(HeaderName, &'static str, PathBuf)>,
}

impl RequestHeaders {
    /// Fails if a file cannot be read now. Its content is read again for each request.
    pub fn new(headers: &[ExportHeader]) -> anyhow::Result<RequestHeaders> {
        let mut fixed = HeaderMap::new();
        let mut files = Vec::new();
        for header in headers {
            let name = HeaderName::try_from(&header.name)
                .with_context(|| format!("{:?} is not a header's name", header.name))?;
            match &header.value {
                HeaderSource::Text(text) => {
                    fixed.append(name.clone(), header_value(&name, text)?);
                }
                HeaderSource::File(path) | HeaderSource::Bearer(path) => {
                    let text = std::fs::read_to_string(path);
                    let text = text.with_context(|| format!("header {name}: read {}", path.display()))?;
                    header_value(&name, &text)?;
                    let prefix = if matches!(header.value, HeaderSource::Bearer(_)) { "Bearer " } else { "" };
                    files.push((name, prefix, path.clone()));
                }
            }
        }
        Ok(RequestHeaders { fixed, files })
    }

    /// All headers, with the files' content as it is now.
    pub async fn read(&self) -> anyhow::Result<HeaderMap> {
        let mut headers = self.fixed.clone();
        for (name, prefix, path) in &self.files {
            let text =
                read_file(path).await.with_context(|| format!("header {name}: read {}", path.display()))?;
            // Checked without the prefix: an empty file has no token.
            header_value(name, &text)?;
            headers.append(name.clone(), header_value(name, &format!("{prefix}{text}"))?);
        }
        Ok(headers)
    }
}

async fn read_file(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    tokio::fs::File::open(path).await?.take(MAX_FILE_BYTES).read_to_string(&mut text).await?;
    Ok(text)
}

fn header_value(name: &HeaderName, text: &str) -> anyhow::Result<HeaderValue> {
    // Editors end a file with a line feed.
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "the value of header {name} is empty");
    let value = HeaderValue::try_from(text);
    let mut value =
        value.with_context(|| format!("the value of header {name} has bytes that a header must not have"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_headers_value_is_never_printed() {
        let header = ExportHeader::parse("Authorization=Bearer hunter2=").unwrap();
        assert_eq!(format!("{header:?}"), "Authorization=…");
        assert!(header.is_secret() && !ExportHeader::parse("X-Scope-OrgID=shop").unwrap().is_secret());
        let headers = RequestHeaders::new(&[header]).unwrap();
        assert_eq!(headers.fixed["authorization"], "Bearer hunter2=");
        assert!(!format!("{headers:?}").contains("hunter2"));
        for invalid in [
            "hunter2",
            "Authorization: Bearer hunter2=",
            "=hunter2",
            "X=hunter2\n\nY",
            "Content-Type=hunter2",
        ] {
            let error =
                ExportHeader::parse(invalid).and_then(|header| RequestHeaders::new(&[header])).unwrap_err();
            assert!(!format!("{error:#}").contains("hunter2"), "{error:#}");
        }
    }

    #[tokio::test]
    async fn a_header_file_is_read_for_each_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let header = ExportHeader::parse(&format!("Authorization=@{}", path.display())).unwrap();
        let missing = format!("{:#}", RequestHeaders::new(std::slice::from_ref(&header)).unwrap_err());
        assert!(missing.contains("header authorization: read ") && missing.contains("token"), "{missing}");
        std::fs::write(&path, "Bearer one\n").unwrap();
        let headers = RequestHeaders::new(&[header]).unwrap();
        assert_eq!(headers.read().await.unwrap()["authorization"], "Bearer one");
        std::fs::write(&path, "Bearer two\r\n").unwrap();
        assert_eq!(headers.read().await.unwrap()["authorization"], "Bearer two");
        std::fs::write(&path, "three\n").unwrap();
        let bearer = RequestHeaders::new(&[ExportHeader::bearer(&path)]).unwrap();
        assert_eq!(bearer.read().await.unwrap()["authorization"], "Bearer three");
        std::fs::write(&path, "\n").unwrap();
        assert!(bearer.read().await.is_err(), "an empty file is no token");
        std::fs::remove_file(&path).unwrap();
        assert!(headers.read().await.is_err());
    }
}
