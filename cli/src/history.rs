//! The agent's history: finding a running agent or the store that it left, and reporting the gaps on stderr.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use jiff::{SignedDuration, Timestamp};
use podopsy_client::{
    AgentClient, ClientError, EventList, HistoryGap, QueryParameters, RUN_DIR, SOCKET_NAME,
};
use podopsy_model::EventKind;
use podopsy_store::{Collection, DIR, FILE, Filter, ITEMS_MAX, ReadError, Reader};

use crate::args::HistoryArgs;
use crate::render::units;
use crate::terminal::note;

/// Finds an agent that answers. None: there is none. An error: the agent at `--socket` does not answer, or
/// there is no permission to ask one.
pub async fn agent(args: &HistoryArgs) -> anyhow::Result<Option<AgentClient>> {
    let (sockets, named) = sockets(args);
    let mut denied = None;
    for socket in sockets {
        let client = AgentClient::new(&socket);
        match client.get("/healthz", &Vec::new()).await {
            Ok(_) => return Ok(Some(client)),
            // An agent answers; its error is reported by the command's own request.
            Err(ClientError::Refused(_)) => return Ok(Some(client)),
            Err(error @ ClientError::NotPermitted(_)) => denied = denied.or(Some(error)),
            Err(error) if named => {
                bail!("{error}; check that the agent runs and that --socket is its socket")
            }
            Err(error) => tracing::debug!("{error}"),
        }
    }
    denied.map_or(Ok(None), |error| Err(error.into()))
}

/// Like [`agent`], for a command that has no other source.
pub async fn require_agent(args: &HistoryArgs) -> anyhow::Result<AgentClient> {
    agent(args).await?.ok_or_else(|| no_agent(args))
}

/// The error of a command that needs an agent.
pub fn no_agent(args: &HistoryArgs) -> anyhow::Error {
    anyhow!(
        "no agent answers at {}: start podopsy-agent with --state-dir (--socket names the socket of one that runs), \
         or watch new events with podopsy watch",
        args.state_dir.join(SOCKET_NAME).display()
    )
}

/// The sockets to try, and whether the user gave the socket: then a failure is an error.
pub fn sockets(args: &HistoryArgs) -> (Vec<PathBuf>, bool) {
    if let Some(socket) = &args.socket {
        return (vec![socket.clone()], true);
    }
    let mut sockets = vec![args.state_dir.join(SOCKET_NAME)];
    // With an explicit state folder only that folder's agent is meant.
    if args.state_dir == Path::new(DIR) {
        sockets.push(Path::new(RUN_DIR).join(SOCKET_NAME));
    }
    (sockets, false)
}

/// Reads the store that an agent left: the newest `most` events of these kinds, oldest first, and the gaps since `from`.
/// None: there is no store. Blocks on the disk, so an async task must not call it.
pub fn left(
    dir: &Path,
    kinds: &[EventKind],
    most: usize,
    from: Timestamp,
) -> Result<Option<(EventList, Vec<HistoryGap>)>, ReadError> {
    if !dir.join(FILE).exists() {
        return Ok(None);
    }
    let reader = Reader::open(dir);
    let kinds = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
    let mut filter = Filter { kinds, newest_first: true, ..Filter::all(Collection::Events) };
    let mut left = EventList::default();
    loop {
        filter.items = ITEMS_MAX.min(most - left.events.len());
        let page = reader.page(&filter)?;
        left.unreadable += page.unreadable;
        for item in page.items {
            match item.parse() {
                Ok(event) => left.events.push(event),
                Err(_) => left.unreadable += 1,
            }
        }
        filter.after = page.next;
        left.more = page.next.is_some();
        if !left.more || left.events.len() >= most {
            break;
        }
    }
    left.events.reverse();
    let gaps = reader.gaps(from, Timestamp::now())?.into_iter().map(|gap| {
        let (from, until) = gap.span();
        HistoryGap { from, until, reason: gap.reason.as_str().to_owned(), lost: gap.lost }
    });
    Ok(Some((left, gaps.collect())))
}

/// The query parameters for one pod, or for one of its containers.
pub fn of_pod(namespace: &str, pod: &str, container: Option<&str>) -> QueryParameters {
    let mut query = vec![("namespace", namespace.to_owned()), ("pod", pod.to_owned())];
    query.extend(container.map(|container| ("container", container.to_owned())));
    query
}

/// The time `since` before now, and not before 1970.
pub fn ago(since: std::time::Duration) -> Timestamp {
    let ago = SignedDuration::try_from(since).unwrap_or(SignedDuration::MAX);
    Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH)
}

/// Reports the gaps in the agent's history on stderr. Without them an empty answer would look like a quiet time.
pub async fn note_gaps(client: &AgentClient, from: Timestamp) {
    match client.gaps(from).await {
        Ok(gaps) => print_gaps(&gaps, from),
        Err(error) => {
            note(&format!("cannot ask the agent for gaps in its history, so events may be missing: {error}"))
        }
    }
}

/// Prints the last gaps on stderr.
pub fn print_gaps(gaps: &[HistoryGap], from: Timestamp) {
    for gap in &gaps[gaps.len().saturating_sub(GAPS_PRINTED)..] {
        note(&describe_gap(gap, from));
    }
}

/// Like [`print_gaps`], of several nodes.
pub fn print_gaps_of_nodes(gaps: &[(String, HistoryGap)], from: Timestamp) {
    let more = gaps.len().saturating_sub(GAPS_PRINTED);
    for (node, gap) in &gaps[more..] {
        note(&format!("{node}: {}", describe_gap(gap, from)));
    }
    if more > 0 {
        note(&format!("{} more in the histories of these nodes", units::plural(more as u64, "gap")));
    }
}

/// How many gaps are printed; more of them would hide the answer.
const GAPS_PRINTED: usize = 5;

pub fn describe_gap(gap: &HistoryGap, from: Timestamp) -> String {
    let what = match gap.reason.as_str() {
        "stopped" => "no agent ran (it was stopped)",
        "died" => "no agent ran (it had died)",
        "rebooted" => "no agent ran (the machine was rebooted)",
        "not-written" => "the store could not be written",
        "put-aside" => "the store was damaged; the agent quarantined it and began a new one",
        _ => "events may be missing",
    };
    let lost =
        if gap.lost > 0 { format!("; {} lost", units::plural(gap.lost, "record")) } else { String::new() };
    format!("{} to {}: {what}{lost}", units::date(gap.from.max(from)), units::date(gap.until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_folder_or_socket_excludes_the_default_sockets() {
        let args = |dir: &str, socket: Option<&str>| HistoryArgs {
            state_dir: dir.into(),
            socket: socket.map(PathBuf::from),
        };
        assert_eq!(
            sockets(&args(DIR, None)),
            (vec!["/var/lib/podopsy/agent.sock".into(), "/run/podopsy/agent.sock".into()], false)
        );
        assert_eq!(sockets(&args("/tmp/x", None)), (vec!["/tmp/x/agent.sock".into()], false));
        assert_eq!(sockets(&args(DIR, Some("/s"))), (vec!["/s".into()], true));
    }

    #[test]
    fn a_gap_begins_at_the_time_that_was_asked_for() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let gap = HistoryGap {
            from: Timestamp::UNIX_EPOCH,
            until: time("2026-01-02T03:04:05Z"),
            reason: "not-written".into(),
            lost: 2,
        };
        assert_eq!(
            describe_gap(&gap, time("2026-01-02T03:00:00Z")),
            "2026-01-02 03:00:00Z to 2026-01-02 03:04:05Z: the store could not be written; 2 records lost"
        );
    }
}
