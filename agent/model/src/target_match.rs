//! Which pods a TARGET means, of those that a node, a history or a cluster has.

use std::collections::BTreeSet;

use crate::target::Target;
use crate::workload::{WorkloadKind, workloads};
use crate::{PodRef, text};

/// The largest number of names in one error.
const NAMES_MAX: usize = 8;
/// The largest number of similar names in one error.
const SIMILAR_MAX: usize = 5;

/// A pod that a TARGET may mean.
#[derive(Clone, Debug)]
pub struct PodCandidate<'a> {
    pub pod: &'a PodRef,
    /// What distinguishes it from others in a message, such as `running, 3 min old`.
    pub note: String,
}

/// Why a TARGET means no pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetMatchError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Ambiguous(String),
}

/// The pods that `target` means: those of one name, or those of one controller. A name that no pod has may be the beginning
/// of one pod's name. For a target that names no pod, such as a process, nothing is found.
pub fn find_pods<'a>(
    target: &Target,
    candidates: &[PodCandidate<'a>],
) -> Result<Vec<&'a PodRef>, TargetMatchError> {
    match target {
        Target::Pod { namespace, pod, .. } => find_by_name(namespace.as_deref(), pod, candidates),
        Target::Name(name) => find_by_name(None, name, candidates),
        Target::Workload { namespace, kind, name } => {
            find_by_workload(namespace.as_deref(), *kind, name, candidates)
        }
        Target::All | Target::Pid(_) | Target::Cgroup(_) => Ok(Vec::new()),
    }
}

fn find_by_name<'a>(
    namespace: Option<&str>,
    name: &str,
    candidates: &[PodCandidate<'a>],
) -> Result<Vec<&'a PodRef>, TargetMatchError> {
    let of_namespace: Vec<&PodCandidate<'a>> =
        candidates.iter().filter(|one| namespace.is_none_or(|name| one.pod.namespace == name)).collect();
    let with = |is: &dyn Fn(&str) -> bool| -> Vec<&PodCandidate<'a>> {
        of_namespace.iter().copied().filter(|one| is(&one.pod.name)).collect()
    };
    let exact = with(&|own| own == name);
    let (found, how) = match exact.is_empty() {
        false => (exact, "is the name of"),
        true => (with(&|own| own.starts_with(name)), "begins the names of"),
    };
    let names: BTreeSet<String> = found.iter().map(|one| full_name(one.pod)).collect();
    match names.len() {
        1 => Ok(found.into_iter().map(|one| one.pod).collect()),
        0 => Err(TargetMatchError::NotFound(not_found(namespace, name, candidates))),
        count => Err(TargetMatchError::Ambiguous(format!(
            "{} is ambiguous: it {how} {count} pods: {}{}",
            text::escape(name),
            describe(&found),
            common_workload(&found).map(|all| format!("; {all} means all of them")).unwrap_or_default()
        ))),
    }
}

fn not_found(namespace: Option<&str>, name: &str, candidates: &[PodCandidate<'_>]) -> String {
    let place = namespace.map(|name| format!(" in namespace {}", text::escape(name))).unwrap_or_default();
    // A pod may be known by its uid alone.
    let named = candidates.iter().filter(|one| !one.pod.name.is_empty());
    let (wanted, names): (String, Vec<String>) = match namespace {
        Some(namespace) => (format!("{namespace}/{name}"), named.map(|one| full_name(one.pod)).collect()),
        None => (name.to_owned(), named.map(|one| one.pod.name.clone()).collect()),
    };
    format!("no pod is named {}{place}{}", text::escape(name), similar_names(&wanted, names.into_iter()))
}

fn find_by_workload<'a>(
    namespace: Option<&str>,
    kind: WorkloadKind,
    name: &str,
    candidates: &[PodCandidate<'a>],
) -> Result<Vec<&'a PodRef>, TargetMatchError> {
    let is_wanted = |one: &&PodCandidate<'a>| {
        namespace.is_none_or(|namespace| one.pod.namespace == namespace)
            && workloads(one.pod).iter().any(|owner| owner.kind == kind && owner.name == name)
    };
    let found: Vec<&PodCandidate<'a>> = candidates.iter().filter(is_wanted).collect();
    let namespaces: BTreeSet<&str> = found.iter().map(|one| one.pod.namespace.as_str()).collect();
    let shown = format!("{}/{}", kind.short_name(), text::escape(name));
    match namespaces.len() {
        1 => Ok(found.into_iter().map(|one| one.pod).collect()),
        0 => {
            let of_kind = candidates.iter().flat_map(|one| workloads(one.pod)).filter(|all| all.kind == kind);
            let names = of_kind.map(|owner| format!("{}/{}", kind.short_name(), owner.name));
            Err(TargetMatchError::NotFound(format!(
                "no pod of {shown} is known{}",
                similar_names(&format!("{}/{name}", kind.short_name()), names)
            )))
        }
        _ => {
            let all: Vec<String> = namespaces.iter().map(|space| format!("{space}/{shown}")).collect();
            Err(TargetMatchError::Ambiguous(format!("{shown} is ambiguous: {}", all.join(", "))))
        }
    }
}

fn full_name(pod: &PodRef) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// `shop/web-1 (running), shop/web-2 (exited)`.
fn describe(found: &[&PodCandidate<'_>]) -> String {
    let mut names: Vec<String> = found
        .iter()
        .map(|one| match one.note.as_str() {
            "" => full_name(one.pod),
            note => format!("{} ({note})", full_name(one.pod)),
        })
        .collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

/// The outermost controller that all of them have.
fn common_workload(found: &[&PodCandidate<'_>]) -> Option<String> {
    let outermost = |one: &&PodCandidate<'_>| {
        let owner = workloads(one.pod).into_iter().next()?;
        Some(format!("{}/{}/{}", one.pod.namespace, owner.kind.short_name(), owner.name))
    };
    let (first, rest) = found.split_first()?;
    let common = outermost(first)?;
    rest.iter().all(|one| outermost(one).as_ref() == Some(&common)).then_some(common)
}

/// `; did you mean a, b?`, or nothing.
pub fn similar_names(wanted: &str, names: impl Iterator<Item = String>) -> String {
    let mut close: Vec<(usize, String)> = names
        .map(|name| {
            let related = name.contains(wanted) || wanted.contains(name.as_str());
            (if related { 0 } else { distance(wanted, &name) }, name)
        })
        .filter(|(far, _)| *far <= 2 + wanted.chars().count() / 4)
        .collect();
    close.sort();
    close.dedup();
    let close: Vec<_> = close.into_iter().take(SIMILAR_MAX).map(|(_, name)| name).collect();
    if close.is_empty() { String::new() } else { format!("; did you mean {}?", close.join(", ")) }
}

/// The Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, hash: Option<&str>) -> PodRef {
        let labels = hash.map(|hash| ("pod-template-hash".to_owned(), hash.to_owned()));
        PodRef {
            namespace: namespace.into(),
            name: name.into(),
            uid: name.into(),
            labels: labels.into_iter().collect(),
        }
    }

    /// The names of what is found, or the error.
    fn found(target: &str) -> Result<Vec<String>, TargetMatchError> {
        let hash = Some("7d9c5b6f4");
        let pods = [
            pod("shop", "cart-7d9c5b6f4-x2v8p", hash),
            pod("shop", "cart-7d9c5b6f4-b4cdf", hash),
            pod("shop", "orders", None),
            pod("shop", "orders-db", None),
            pod("test", "web", None),
            pod("prod", "web", None),
            pod("", "", None),
        ];
        let candidate = |pod| PodCandidate { pod, note: "running".to_owned() };
        let candidates: Vec<_> = pods.iter().map(candidate).collect();
        let found = find_pods(&target.parse().unwrap(), &candidates)?;
        Ok(found.into_iter().map(|pod| pod.name.clone()).collect())
    }

    #[test]
    fn a_name_or_the_beginning_of_one_name_is_a_pod() {
        assert_eq!(found("orders").unwrap(), ["orders"], "an exact name wins over a beginning");
        assert_eq!(found("orders-").unwrap(), ["orders-db"]);
        assert_eq!(found("shop/cart-7d9c5b6f4-x").unwrap(), ["cart-7d9c5b6f4-x2v8p"]);
        assert_eq!(found("test/web").unwrap(), ["web"]);
        assert_eq!(found("deploy/cart").unwrap().len(), 2);
        assert_eq!(found("shop/deployment/cart").unwrap().len(), 2);
        assert_eq!(found("rs/cart-7d9c5b6f4").unwrap().len(), 2);
    }

    #[test]
    fn an_ambiguous_name_lists_the_candidates_and_what_means_all_of_them() {
        assert_eq!(
            found("cart").unwrap_err(),
            TargetMatchError::Ambiguous(
                "cart is ambiguous: it begins the names of 2 pods: shop/cart-7d9c5b6f4-b4cdf (running), \
                 shop/cart-7d9c5b6f4-x2v8p (running); shop/deploy/cart means all of them"
                    .into()
            )
        );
        let error = found("web").unwrap_err().to_string();
        assert!(error.contains("prod/web (running), test/web (running)"), "{error}");
    }

    #[test]
    fn what_is_not_found_has_similar_names() {
        let not_found = |target: &str| match found(target) {
            Err(TargetMatchError::NotFound(text)) => text,
            other => panic!("{target}: {other:?}"),
        };
        assert_eq!(not_found("ordres"), "no pod is named ordres; did you mean orders?");
        assert_eq!(
            not_found("shop/web"),
            "no pod is named web in namespace shop; did you mean prod/web, test/web?"
        );
        assert_eq!(not_found("deploy/carts"), "no pod of deploy/carts is known; did you mean deploy/cart?");
        assert_eq!(not_found("sts/cart"), "no pod of sts/cart is known");
        assert_eq!(not_found("something-else"), "no pod is named something-else");
        assert!(!not_found("a\u{1b}[2J").contains('\u{1b}'));
    }

    #[test]
    fn distance_is_levenshteins() {
        for (a, b, far) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("pricing", "pircing", 2)] {
            assert_eq!(distance(a, b), far, "{a} {b}");
        }
    }
}
