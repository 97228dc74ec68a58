//! Label selectors, as `kubectl -l` takes the equality-based ones: `app=web,tier!=db,canary,!legacy`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Requirements that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Equals(String, String),
    /// Also true if there is no such label, as in Kubernetes.
    Differs(String, String),
    Exists(String),
    Absent(String),
}

impl Selector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Equals(key, value) => labels.get(key) == Some(value),
            Requirement::Differs(key, value) => labels.get(key) != Some(value),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
        })
    }
}

/// As it was read.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().map(|requirement| match requirement {
            Requirement::Equals(key, value) => format!("{key}={value}"),
            Requirement::Differs(key, value) => format!("{key}!={value}"),
            Requirement::Exists(key) => key.clone(),
            Requirement::Absent(key) => format!("!{key}"),
        });
        f.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|part| requirement(part.trim())).collect::<Result<_, _>>().map(Selector)
    }
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let requirement = if let Some((key, value)) = text.split_once("!=") {
        Requirement::Differs(key_of(key)?, value.trim().to_owned())
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        Requirement::Equals(key_of(key)?, value.trim().to_owned())
    } else if let Some(key) = text.strip_prefix('!') {
        Requirement::Absent(key_of(key)?)
    } else {
        Requirement::Exists(key_of(text)?)
    };
    Ok(requirement)
}

/// A label's key: letters, digits and `-_./` (Kubernetes, "Labels and Selectors").
fn key_of(text: &str) -> Result<String, String> {
    let key = text.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(plain) {
        return Err("use key=value, key!=value, key or !key, with commas between".to_owned());
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_matches_as_in_kubectl() {
        let labels: BTreeMap<_, _> =
            [("app", "web"), ("tier", "front")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (selector, expected) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("tier!=back", true),
            ("absent!=x", true),
            ("app", true),
            ("!app", false),
            ("!absent,app = web", true),
            ("app=", false),
        ] {
            let read: Selector = selector.parse().unwrap();
            assert_eq!(read.matches(&labels), expected, "{selector}");
            assert_eq!(read.to_string().parse(), Ok(read), "{selector}");
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", ",", "=x", "a b", "app in (x)", "a=b,,c=d"] {
            assert!(text.parse::<Selector>().unwrap_err().contains("key=value"), "{text}");
        }
    }
}
