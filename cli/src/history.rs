//! Where a command finds an agent that has kept what happened, and what it says of its answers.

use std::path::{Path, PathBuf};

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use podopsy_client::{
    AgentClient, ClientError, EventList, HistoryGap, QueryParameters, RUN_DIR, SOCKET_NAME,
};
use podopsy_model::EventKind;
use podopsy_store::{Collection, DIR, FILE, Filter, ITEMS_MAX, ReadError, Reader};

use crate::args::HistoryDir;
use crate::render::units;
use crate::terminal::note;

/// An agent that answers; None: there is none, and none was named. An error: the one that was named does not.
pub async fn agent(args: &HistoryDir) -> anyhow::Result<Option<AgentClient>> {
    let (sockets, named) = sockets(args);
    for socket in sockets {
        let client = AgentClient::new(&socket);
        match client.get("/healthz", &Vec::new()).await {
            Ok(_) => return Ok(Some(client)),
            // It is there: what is wrong with it will be said when it is asked.
            Err(ClientError::Refused(_)) => return Ok(Some(client)),
            Err(error) if named => bail!("{error}; --socket names the agent's socket"),
            Err(error) => tracing::debug!("{error}"),
        }
    }
    Ok(None)
}

/// Where to look, and whether that was named: then nothing else will do.
fn sockets(args: &HistoryDir) -> (Vec<PathBuf>, bool) {
    if let Some(socket) = &args.socket {
        return (vec![socket.clone()], true);
    }
    let mut sockets = vec![args.state_dir.join(SOCKET_NAME)];
    // Whoever names a state folder means that agent.
    if args.state_dir == Path::new(DIR) {
        sockets.push(Path::new(RUN_DIR).join(SOCKET_NAME));
    }
    (sockets, false)
}

/// Events of these kinds in the store that an agent has left, the newest `most`, oldest first, and the gaps since `from`;
/// None: it has left none. Waits for the disk: not for an async task.
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

/// The parameters that ask for one pod's, or one container's.
pub fn of_pod(namespace: &str, pod: &str, container: Option<&str>) -> QueryParameters {
    let mut query = vec![("namespace", namespace.to_owned()), ("pod", pod.to_owned())];
    query.extend(container.map(|container| ("container", container.to_owned())));
    query
}

/// The time that lies so long ago.
pub fn ago(since: std::time::Duration) -> Timestamp {
    let ago = SignedDuration::try_from(since).unwrap_or(SignedDuration::MAX);
    Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH)
}

/// Says of which times not all is known. An answer without this would look like nothing had happened.
pub async fn note_gaps(client: &AgentClient, from: Timestamp) {
    match client.gaps(from).await {
        Ok(gaps) => say_gaps(&gaps, from),
        Err(error) => note(&format!("whether the agent ran all the time is not known: {error}")),
    }
}

/// The last of them.
pub fn say_gaps(gaps: &[HistoryGap], from: Timestamp) {
    gaps.iter().rev().take(GAPS).rev().for_each(|gap| note(&say(gap, from)));
}

/// Gaps that are said, the last ones; more of them are noise.
const GAPS: usize = 5;

fn say(gap: &HistoryGap, from: Timestamp) -> String {
    let what = match gap.reason.as_str() {
        "stopped" => "no agent ran (it was stopped)",
        "died" => "no agent ran (it had died)",
        "rebooted" => "no agent ran (the machine was started anew)",
        "not-written" => "the store could not be written",
        "put-aside" => "the store was damaged and put aside",
        _ => "not all is known",
    };
    let lost =
        if gap.lost > 0 { format!("; {} lost", units::plural(gap.lost, "record")) } else { String::new() };
    format!("{} to {}: {what}{lost}", units::date(gap.from.max(from)), units::date(gap.until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_named_is_meant() {
        let args = |dir: &str, socket: Option<&str>| HistoryDir {
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
    fn a_gap_is_said_as_far_as_it_was_asked_for() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let gap = HistoryGap {
            from: Timestamp::UNIX_EPOCH,
            until: time("2026-01-02T03:04:05Z"),
            reason: "not-written".into(),
            lost: 2,
        };
        assert_eq!(
            say(&gap, time("2026-01-02T03:00:00Z")),
            "2026-01-02 03:00:00Z to 2026-01-02 03:04:05Z: the store could not be written; 2 records lost"
        );
    }
}
