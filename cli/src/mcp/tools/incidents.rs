//! `list_incidents` and `autopsy`: OOM kills and other SIGKILLs.

use jiff::{SignedDuration, Timestamp};
use podopsy_model::Event;
use serde::{Deserialize, Serialize};

use super::Tool;
use super::arguments::{Limit, Since, TargetName};
use crate::cmd::oom;
use crate::mcp::answer::{Answer, Kept, Rows};
use crate::mcp::server::Server;
use crate::render::{autopsy, sigkill};
use crate::timeline::{EntryEvidence, EntryKind, kill};

/// List OOM kills, and other SIGKILLs that processes of containers got, the newest first. Each has an id, which `autopsy` takes.
/// OOM kills of child processes are among them, which Kubernetes does not show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ListIncidents {
    /// How far back, such as 30m, 24h or 7d [default: 24h]
    since: Option<Since>,
    /// A pod by its name or the beginning of it, namespace/pod, namespace/pod/container, or a controller: deploy/NAME, sts/NAME,
    /// ds/NAME, job/NAME; also pods that are gone [default: all]
    target: Option<TargetName>,
    /// Only pods of this namespace
    namespace: Option<String>,
    /// At most the newest N, up to 500 [default: 50]
    limit: Option<Limit>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IncidentList {
    /// The newest first.
    incidents: Vec<KillRow>,
}

/// One kill.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KillRow {
    /// For the tool `autopsy`.
    id: String,
    time: Timestamp,
    kind: EntryKind,
    node: String,
    /// Null: the process was in no pod, or its pod is not known.
    namespace: Option<String>,
    pod: Option<String>,
    container: Option<String>,
    /// The limit that was met and the victim, or the sender of a SIGKILL.
    text: String,
    how: EntryEvidence,
}

impl KillRow {
    fn of(event: &Event) -> Option<KillRow> {
        let (kind, how, text) = kill(event)?;
        Some(KillRow {
            id: event.kept_id()?.to_owned(),
            time: event.time,
            kind,
            node: event.node.clone(),
            namespace: event.pod.as_ref().map(|pod| pod.namespace.clone()),
            pod: event.pod.as_ref().map(|pod| pod.name.clone()),
            container: event.container.as_ref().map(|container| container.name.clone()),
            text,
            how,
        })
    }
}

impl Tool for ListIncidents {
    const NAME: &'static str = "list_incidents";
    #[cfg(test)]
    const TITLE: &'static str = "OOM kills and SIGKILLs";
    type Answer = Answer<IncidentList>;

    fn rows(&self) -> Rows {
        let max = Limit::or(self.limit, 50);
        Rows {
            field: "incidents",
            kept: Kept::First,
            max,
            hint: "a shorter since, a target, or another limit",
        }
    }

    async fn run(self, server: &Server) -> anyhow::Result<Self::Answer> {
        let target = self.target.map(Into::into);
        let scope = server.source.scope(target, self.namespace, Since::or_hours(self.since, 24))?;
        let found = server.source.kills(&server.context, &scope).await?;
        let incidents = found.sources.events.iter().rev().filter_map(KillRow::of).collect();
        Ok(Answer::new(found, IncidentList { incidents }))
    }
}

/// The autopsy of one OOM kill or SIGKILL: whose limit was met, the victim, the trigger, memory by kind, the code that made memory
/// grow, what Kubernetes shows of it, and who sent a SIGKILL.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Autopsy {
    /// An id from `list_incidents`, or the beginning of one
    id: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AutopsySheet {
    incident: KillRow,
    statements: Vec<Statement>,
}

/// One thing that is known of a kill.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Statement {
    /// Such as `verdict`, `whose limit`, `victim`, `memory` or `growth`.
    about: String,
    text: String,
    how: EntryEvidence,
}

impl Tool for Autopsy {
    const NAME: &'static str = "autopsy";
    #[cfg(test)]
    const TITLE: &'static str = "The autopsy of one kill";
    type Answer = Answer<AutopsySheet>;

    fn rows(&self) -> Rows {
        Rows { field: "statements", kept: Kept::First, max: usize::MAX, hint: "podopsy oom show ID has all" }
    }

    async fn run(self, server: &Server) -> anyhow::Result<Self::Answer> {
        let scope = server.source.scope(None, None, SignedDuration::MAX)?;
        let mut found = server.source.kills(&server.context, &scope).await?;
        let event = oom::find(&found.sources.events, &self.id)?.clone();
        found.sources.events = vec![event.clone()];
        // Gaps say what may be missing from a list, and nothing of one kill.
        found.gaps.clear();
        let incident =
            KillRow::of(&event).ok_or_else(|| anyhow::anyhow!("the record of {} is damaged", self.id))?;
        let statements = statements(&event, incident.how);
        Ok(Answer::new(found, AutopsySheet { incident, statements }))
    }
}

fn statements(event: &Event, limit: EntryEvidence) -> Vec<Statement> {
    let fields = match (&event.incident, event.sigkill()) {
        (Some(incident), _) => autopsy::fields(event, incident),
        (None, Some(sigkill)) => sigkill::fields(event, sigkill),
        (None, None) => Vec::new(),
    };
    let statement = |(about, text): (&str, String)| Statement {
        how: match about {
            "whose limit" => limit,
            // The kernel's facts compared with the runtime's report; a pod's controller is a matter of its names.
            "verdict" if event.incident.is_some() => EntryEvidence::Inferred,
            "seen" | "workload" => EntryEvidence::Inferred,
            _ => EntryEvidence::Observed,
        },
        text: match (about, text.split_once('\n')) {
            // The first line is a picture.
            ("memory", Some((_, figures))) => figures.to_owned(),
            _ => text,
        },
        about: about.to_owned(),
    };
    fields.into_iter().map(statement).collect()
}
