//! Names that exist: pods, their namespaces and controllers, ids of kills, terms of the glossary.
//!
//! A name that Kubernetes would not take is left out: a shell would run what is in it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use clap_complete::engine::CompletionCandidate;
use jiff::Timestamp;
use podopsy_model::{Event, workloads};
use podopsy_pods::PodDetails;
use podopsy_store::DIR;

use crate::args::{HistoryArgs, WatchKind};
use crate::cmd::{explain, oom};
use crate::context::Context;
use crate::render::{oom as kills, units};
use crate::terminal::visible;
use crate::{history, past, privilege};

/// How long all questions together may take.
const TIME_MAX: Duration = Duration::from_millis(300);
/// Ids of kills, the newest first.
const INCIDENTS_MAX: usize = 100;
/// The longest name that Kubernetes takes.
const NAME_MAX: usize = 253;

/// Finds names on this machine.
#[derive(Clone, Debug)]
pub struct Live {
    context: Context,
    history: HistoryArgs,
    /// What `-n` says.
    namespace: Option<String>,
}

impl Live {
    /// For the words of a command line that may be incomplete.
    pub fn new(context: Context, words: &[String]) -> Live {
        let path = |option, variable| {
            value_of(words, option).or_else(|| std::env::var(variable).ok()).map(PathBuf::from)
        };
        let state_dir = path("--state-dir", "PODOPSY_STATE_DIR").unwrap_or_else(|| DIR.into());
        let history = HistoryArgs { state_dir, socket: path("--socket", "PODOPSY_SOCKET") };
        let namespace = value_of(words, "--namespace").or_else(|| value_of(words, "-n"));
        Live { context, history, namespace }
    }

    /// Pods; the beginning of a controller's name, or of a container's behind its pod's, finds these, too.
    pub fn targets(&self, current: &str) -> Vec<CompletionCandidate> {
        let mut found = BTreeSet::new();
        for pod in self.pods() {
            let note = visible(&pod.candidate().note);
            for name in self.names(&pod, current) {
                found.insert((name, note.clone()));
            }
        }
        let candidate =
            |(name, note): (String, String)| CompletionCandidate::new(name).help(Some(note.into()));
        found.into_iter().map(candidate).collect()
    }

    /// For `watch`.
    pub fn kinds_and_targets(&self, current: &str) -> Vec<CompletionCandidate> {
        let kinds = WatchKind::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let kinds = kinds.map(|kind| kind.get_name().to_owned()).filter(|kind| kind.starts_with(current));
        kinds.map(CompletionCandidate::new).chain(self.targets(current)).collect()
    }

    /// The ways to write a pod that begin with `current`.
    fn names(&self, pod: &PodDetails, current: &str) -> Vec<String> {
        let (namespace, name) = (&pod.pod.namespace, &pod.pod.name);
        let full = format!("{namespace}/{name}");
        let mut names = Vec::new();
        match &self.namespace {
            Some(wanted) if wanted != namespace => return names,
            Some(_) => names.push(name.clone()),
            None => names.push(full.clone()),
        }
        if !current.is_empty() {
            names.push(name.clone());
            names.extend(
                workloads(&pod.pod).iter().map(|one| format!("{}/{}", one.kind.short_name(), one.name)),
            );
        }
        if current.starts_with(&format!("{full}/")) {
            names.extend(pod.containers.iter().map(|one| format!("{full}/{}", one.container.name)));
        }
        names.retain(|name| name.starts_with(current) && name.split('/').all(is_name));
        names
    }

    pub fn namespaces(&self, current: &str) -> Vec<CompletionCandidate> {
        let names: BTreeSet<String> = self.pods().into_iter().map(|pod| pod.pod.namespace).collect();
        let is_wanted = |name: &String| name.starts_with(current) && is_name(name);
        names.into_iter().filter(is_wanted).map(CompletionCandidate::new).collect()
    }

    /// Ids of kills, the newest first.
    pub fn incidents(&self, current: &str) -> Vec<CompletionCandidate> {
        let candidate = |(place, event): (usize, &Event)| {
            let id = event.kept_id().filter(|id| id.starts_with(current) && is_name(id))?;
            let help = format!("{} {}", units::date(event.time), visible(&kills::pod(event)));
            Some(CompletionCandidate::new(id).help(Some(help.into())).display_order(Some(place)))
        };
        self.kills().iter().rev().enumerate().filter_map(candidate).collect()
    }

    /// Terms of the glossary. A term of several words needs no quotes.
    pub fn topics(&self, current: &str) -> Vec<CompletionCandidate> {
        let names =
            explain::terms().flat_map(|term| term.name.split(',').map(|name| name.trim().to_lowercase()));
        let names: BTreeSet<String> =
            names.filter(|name| name.starts_with(&current.to_lowercase())).collect();
        names.into_iter().map(CompletionCandidate::new).collect()
    }

    /// From the agent, or else from the container runtime. None where neither answers.
    fn pods(&self) -> Vec<PodDetails> {
        within_time(async {
            if let Ok(Some(agent)) = history::agent(&self.history).await
                && let Ok(pods) = past::list_pods(&agent).await
            {
                return pods;
            }
            let socket = self.context.global.cri_socket.as_deref();
            if privilege::require_runtime("complete", socket).is_err() {
                return Vec::new();
            }
            match self.context.pods().await {
                Ok(pods) => pods.list().await.unwrap_or_default(),
                Err(_) => Vec::new(),
            }
        })
    }

    /// From the agent, or else from the store that it left; the oldest first.
    fn kills(&self) -> Vec<Event> {
        within_time(async {
            if let Ok(Some(agent)) = history::agent(&self.history).await {
                return agent.events(&oom::kinds(), INCIDENTS_MAX).await.unwrap_or_default().events;
            }
            let dir = self.history.state_dir.clone();
            let read = move || history::left(&dir, &oom::KINDS, INCIDENTS_MAX, Timestamp::MAX);
            match tokio::task::spawn_blocking(read).await {
                Ok(Ok(Some((kept, _)))) => kept.events,
                _ => Vec::new(),
            }
        })
    }
}

/// What the question found in time, or nothing.
fn within_time<T: Default>(question: impl Future<Output = T>) -> T {
    let question = async { tokio::time::timeout(TIME_MAX, question).await.unwrap_or_default() };
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(question))
}

/// The value that an option has on a command line.
fn value_of(words: &[String], option: &str) -> Option<String> {
    let behind = |at: usize| words.get(at + 1).cloned();
    let joined = |word: &String| word.strip_prefix(option)?.strip_prefix('=').map(str::to_owned);
    words.iter().position(|word| word == option).and_then(behind).or_else(|| words.iter().find_map(joined))
}

/// Whether it is a name that Kubernetes takes (RFC 1123's subdomain), which needs no quotes in any shell.
fn is_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let is_outer = |byte: Option<&u8>| byte.is_some_and(|byte| is_inner(*byte) && !b"-.".contains(byte));
    let bytes = name.as_bytes();
    name.len() <= NAME_MAX
        && bytes.iter().all(|byte| is_inner(*byte))
        && is_outer(bytes.first())
        && is_outer(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_kubernetes_takes_are_offered() {
        for name in ["cart-1", "a.b", "0"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "$(id)", "a b", "a;b", "A", "a\nb", "a'b", "é", &"x".repeat(254)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn options_may_have_their_value_behind_a_space_or_an_equals_sign() {
        let words = ["profile", "-n", "shop", "--socket=/s", "--state-dir"].map(str::to_owned);
        assert_eq!(value_of(&words, "-n").as_deref(), Some("shop"));
        assert_eq!(value_of(&words, "--socket").as_deref(), Some("/s"));
        assert_eq!((value_of(&words, "--state-dir"), value_of(&words, "--x")), (None, None));
    }
}
