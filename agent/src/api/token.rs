//! The bearer token that `/metrics` may ask for (RFC 6750).

use std::path::Path;

use anyhow::{Context, bail};

/// The token's longest form: more is not read.
const BYTES_MAX: usize = 4096;

/// A token, which no log and no error shows.
pub struct MetricsToken(Vec<u8>);

impl std::fmt::Debug for MetricsToken {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("MetricsToken(not shown)")
    }
}

impl MetricsToken {
    /// Reads the token from a file, without the white space around it.
    pub fn load(path: &Path) -> anyhow::Result<MetricsToken> {
        let shown = path.display();
        let text = std::fs::read(path).with_context(|| format!("read {shown} (--metrics-token-file)"))?;
        let token = text.trim_ascii();
        if token.is_empty() || token.len() > BYTES_MAX || !token.iter().all(u8::is_ascii_graphic) {
            bail!(
                "{shown} (--metrics-token-file) holds no token: write one line of 1 to {BYTES_MAX} printable ASCII \
                 characters without spaces into it"
            );
        }
        Ok(MetricsToken(token.to_vec()))
    }

    /// Whether an `Authorization` header has this token.
    pub fn is_in(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, token)) = authorization.and_then(|value| value.split_at_checked(BEARER.len()))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case(BEARER) && is_equal(token.trim_ascii(), &self.0)
    }
}

const BEARER: &[u8] = b"Bearer ";

/// Compares in a time that depends on the lengths alone, so that a client cannot find the token byte by byte.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let different = one.iter().zip(other).fold(0, |bits, (a, b)| std::hint::black_box(bits | (a ^ b)));
    one.len() == other.len() && different == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "s3cret-token\n").unwrap();
        let token = MetricsToken::load(&file).unwrap();
        let is_in = |value: &str| token.is_in(Some(value.as_bytes()));
        assert!(is_in("Bearer s3cret-token") && is_in("bearer  s3cret-token"));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3cret-toke",
            "Bearer s3cret-tokenx",
            "Basic s3cret-token",
            "s3cret-token",
        ] {
            assert!(!is_in(wrong), "{wrong}");
        }
        assert!(!token.is_in(None));
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn a_file_without_a_token_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for text in ["", "\n", "two words", "geheim\u{e4}"] {
            std::fs::write(&file, text).unwrap();
            let error = format!("{:#}", MetricsToken::load(&file).unwrap_err());
            assert!(error.contains("--metrics-token-file") && error.contains("token"), "{error}");
            assert!(text.len() < 3 || !error.contains(text), "{error}");
        }
        let error = format!("{:#}", MetricsToken::load(&folder.path().join("absent")).unwrap_err());
        assert!(error.contains("absent (--metrics-token-file)"), "{error}");
    }
}
