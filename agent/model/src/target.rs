//! TARGET: one grammar for every command.

use std::{fmt, str::FromStr};

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-a`: the whole node.
    All,
    /// `namespace/pod[/container]`.
    Pod { namespace: String, pod: String, container: Option<String> },
    /// `pid:N`, a process id in the host's pid namespace.
    Pid(u32),
    /// `cgroup:PATH`, below the memory hierarchy's root.
    Cgroup(String),
    /// A name alone: a container id prefix (4 hex digits or more) or a pod's name, tried in that order.
    Name(String),
}

/// The error for an invalid TARGET. The text shows what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot read TARGET {0:?}: {1}; use namespace/pod, namespace/pod/container, a pod name, a container id prefix, pid:N or cgroup:PATH"
)]
pub struct TargetError(String, &'static str);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let bad = |why| TargetError(text.to_owned(), why);
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            return match pid.parse() {
                Ok(0) | Err(_) => Err(bad("a pid is a whole number above 0")),
                Ok(pid) => Ok(Target::Pid(pid)),
            };
        }
        if let Some(path) = text.strip_prefix("cgroup:") {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(bad("a cgroup path starts with / and has no .."));
            }
            return Ok(Target::Cgroup(path.to_owned()));
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(bad("a part of it is empty"));
        }
        match parts[..] {
            [name] => Ok(Target::Name(name.to_owned())),
            [namespace, pod] => {
                Ok(Target::Pod { namespace: namespace.to_owned(), pod: pod.to_owned(), container: None })
            }
            [namespace, pod, container] => Ok(Target::Pod {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                container: Some(container.to_owned()),
            }),
            _ => Err(bad("it has more than three parts")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::All => write!(f, "the whole node"),
            Target::Pod { namespace, pod, container: None } => write!(f, "{namespace}/{pod}"),
            Target::Pod { namespace, pod, container: Some(c) } => write!(f, "{namespace}/{pod}/{c}"),
            Target::Pid(pid) => write!(f, "pid:{pid}"),
            Target::Cgroup(path) => write!(f, "cgroup:{path}"),
            Target::Name(name) => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_parse_are_inverse() {
        for text in ["finance/pricing", "finance/pricing/app", "pid:1", "cgroup:/a/b", "3f2a9c"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_error_shows_what_is_accepted() {
        for text in ["", "pid:0", "pid:x", "pid:-1", "a//b", "a/b/c/d", "cgroup:x", "cgroup:/a/../b"] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("namespace/pod"), "{text}: {error}");
        }
    }
}
