//! TARGET: one grammar for every command.

use std::{fmt, str::FromStr};

use crate::workload::WorkloadKind;

/// What a command is about. Where the namespace is `None`, all namespaces are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-a`: the whole node.
    All,
    /// `[namespace/][pod/]pod[/container]`.
    Pod { namespace: Option<String>, pod: String, container: Option<String> },
    /// `[namespace/]deploy/NAME` and the like: the pods of a controller.
    Workload { namespace: Option<String>, kind: WorkloadKind, name: String },
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
    "cannot read TARGET {0:?}: {1}; use namespace/pod, namespace/pod/container, a pod name or its beginning, deploy/NAME \
     (also sts, ds, rs, job, cronjob, pod), namespace/deploy/NAME, a container id prefix, pid:N or cgroup:PATH"
)]
pub struct TargetError(String, &'static str);

impl Target {
    /// The same target in `namespace`, where it names none itself. A container id is of one namespace anyway.
    /// Returns an error if the target names another namespace.
    pub fn in_namespace(self, namespace: &str) -> Result<Target, TargetError> {
        let shown = self.to_string();
        let set = |own: Option<String>| match own {
            Some(own) if own != namespace => {
                Err(TargetError(shown, "it names another namespace than -n; leave one of them out"))
            }
            _ => Ok(Some(namespace.to_owned())),
        };
        Ok(match self {
            Target::Pod { namespace, pod, container } => {
                Target::Pod { namespace: set(namespace)?, pod, container }
            }
            Target::Workload { namespace, kind, name } => {
                Target::Workload { namespace: set(namespace)?, kind, name }
            }
            Target::Name(pod) => Target::Pod { namespace: set(None)?, pod, container: None },
            other => other,
        })
    }
}

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
        of_names(&parts).map_err(bad)
    }
}

/// What a name in front of a `/` stands for, as in kubectl.
#[derive(Clone, Copy)]
enum Prefix {
    Pod,
    Workload(WorkloadKind),
}

impl Prefix {
    fn from_name(name: &str) -> Option<Prefix> {
        match name {
            "pod" | "pods" | "po" => Some(Prefix::Pod),
            name => WorkloadKind::from_name(name).map(Prefix::Workload),
        }
    }
}

/// A kind has precedence over a namespace or a pod of the same name, as in kubectl.
fn of_names(parts: &[&str]) -> Result<Target, &'static str> {
    let (namespace, prefix, rest) = match parts {
        [first, rest @ ..] if !rest.is_empty() && Prefix::from_name(first).is_some() => {
            (None, Prefix::from_name(first), rest)
        }
        [namespace, second, rest @ ..] if !rest.is_empty() && Prefix::from_name(second).is_some() => {
            (Some(*namespace), Prefix::from_name(second), rest)
        }
        [name] => return Ok(Target::Name((*name).to_owned())),
        [namespace, rest @ ..] => (Some(*namespace), Some(Prefix::Pod), rest),
        [] => return Err("it is empty"),
    };
    let namespace = namespace.map(str::to_owned);
    match (prefix, rest) {
        (Some(Prefix::Workload(kind)), [name]) => {
            Ok(Target::Workload { namespace, kind, name: (*name).to_owned() })
        }
        (Some(Prefix::Workload(_)), _) => Err("a container is named after its pod"),
        (_, [pod]) => Ok(Target::Pod { namespace, pod: (*pod).to_owned(), container: None }),
        (_, [pod, container]) => {
            let (pod, container) = ((*pod).to_owned(), Some((*container).to_owned()));
            Ok(Target::Pod { namespace, pod, container })
        }
        _ => Err("it has too many parts"),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = |name: &Option<String>| name.as_ref().map(|name| format!("{name}/")).unwrap_or_default();
        match self {
            Target::All => write!(f, "the whole node"),
            Target::Pod { namespace, pod, container } => {
                let start = namespace.as_ref().map_or_else(|| "pod/".to_owned(), |name| format!("{name}/"));
                let container = container.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
                write!(f, "{start}{pod}{container}")
            }
            Target::Workload { namespace, kind, name } => {
                write!(f, "{}{}/{name}", slash(namespace), kind.short_name())
            }
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
        for text in [
            "finance/pricing",
            "finance/pricing/app",
            "pod/pricing",
            "pod/pricing/app",
            "deploy/pricing",
            "finance/cronjob/nightly",
            "pid:1",
            "cgroup:/a/b",
            "3f2a9c",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn kinds_are_named_as_kubectl_names_them() {
        for (text, expected) in [
            ("deployment/web", "deploy/web"),
            ("deployments/web", "deploy/web"),
            ("shop/statefulset/db", "shop/sts/db"),
            ("daemonsets/agent", "ds/agent"),
            ("jobs/report", "job/report"),
            ("cj/nightly", "cronjob/nightly"),
            ("shop/pods/web-1", "shop/web-1"),
            ("shop/pod/web-1/app", "shop/web-1/app"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn a_namespace_completes_a_target_and_cannot_contradict_it() {
        for (text, expected) in [
            ("web-1", Some("shop/web-1")),
            ("pod/web-1/app", Some("shop/web-1/app")),
            ("deploy/web", Some("shop/deploy/web")),
            ("shop/web-1", Some("shop/web-1")),
            ("pid:7", Some("pid:7")),
            ("other/web-1", None),
            ("other/deploy/web", None),
        ] {
            let target = text.parse::<Target>().unwrap().in_namespace("shop");
            assert_eq!(target.ok().map(|target| target.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_error_shows_what_is_accepted() {
        for text in [
            "",
            "pid:0",
            "pid:x",
            "pid:-1",
            "a//b",
            "a/b/c/d",
            "deploy/web/app",
            "cgroup:x",
            "cgroup:/a/../b",
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("namespace/pod") && error.contains("deploy/NAME"), "{text}: {error}");
        }
    }
}
