//! Reads evidence from the history of this node's agent.

use jiff::{SignedDuration, Timestamp};
use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_model::{Event, EventKind, Owner, PodIncident, PodRef, Target};
use podopsy_store::MemoryRecord;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{CpuFacts, Manifest, PodEvidence, bundle};
use crate::args::EvidenceArgs;
use crate::cmd::{kept, oom};
use crate::context::Context;
use crate::exit::Refusal;
use crate::history;
use crate::past::{self, EVENTS_READ_MAX, PastQuery};
use crate::selection::{OwnerScope, Selection};
use crate::timeline::Sources;

/// The kinds of events that are read. The queries of a `dns.lookup` are events of their own.
const KINDS: [EventKind; 3] = [EventKind::OomIncident, EventKind::Sigkill, EventKind::DnsFailure];
/// Records of memory, and incidents, that are read at most. A container has six records of memory an hour.
const RECORDS_MAX: usize = 10_000;
/// What belongs to an incident comes within this time after it: a restart may take five minutes.
const AFTER: SignedDuration = SignedDuration::from_mins(10);

/// What was read, and whether there was more.
pub struct Records {
    pub sources: Sources,
    pub more: bool,
}

/// What the arguments ask for: from a bundle, or from the agent.
pub async fn of_args(context: &Context, args: &EvidenceArgs) -> anyhow::Result<(PodEvidence, String)> {
    if let Some(path) = &args.from {
        let selection = Selection::new(&args.targets, &args.pods)?;
        selection.require_no_process()?;
        let mut evidence = bundle::open(path)?;
        if let Some(id) = &args.incident {
            let found = oom::find(&evidence.sources.events, id)?;
            evidence.manifest.incident = found.kept_id().map(str::to_owned);
        }
        select(context, &mut evidence.sources, &selection, evidence.manifest.from).await?;
        return Ok((evidence, "a bundle".to_owned()));
    }
    let agent = history::require_agent(&args.history).await?;
    let evidence = match &args.incident {
        Some(id) => of_incident(context, &agent, args, id).await?,
        None => {
            let selection = Selection::new(&args.targets, &args.pods)?;
            of_pods(context, &agent, &selection, history::ago(args.since), Timestamp::now()).await?
        }
    };
    Ok((evidence, format!("the agent at {}", agent.name())))
}

/// The pod of an incident, in the time around it.
async fn of_incident(
    context: &Context,
    agent: &AgentClient,
    args: &EvidenceArgs,
    id: &str,
) -> anyhow::Result<PodEvidence> {
    let (kept, _) = oom::kept(&args.history, None).await?;
    let event = oom::find(&kept.events, id)?;
    let Some(pod) = &event.pod else {
        let reason = format!("{id} is of a process in no pod: podopsy oom show {id} has its autopsy");
        return Err(Refusal(reason).into());
    };
    let target =
        Target::Pod { namespace: Some(pod.namespace.clone()), pod: pod.name.clone(), container: None };
    let selection = Selection::new(&[target], &args.pods)?;
    let since = SignedDuration::try_from(args.since).unwrap_or(SignedDuration::MAX);
    let from = event.time.saturating_sub(since)?.max(Timestamp::UNIX_EPOCH);
    let until = event.time.saturating_add(AFTER)?.min(Timestamp::now());
    let mut evidence = of_pods(context, agent, &selection, from, until).await?;
    evidence.manifest.incident = event.kept_id().map(str::to_owned);
    Ok(evidence)
}

async fn of_pods(
    context: &Context,
    agent: &AgentClient,
    selection: &Selection,
    from: Timestamp,
    until: Timestamp,
) -> anyhow::Result<PodEvidence> {
    let mut read = records(context, agent, selection, from).await?;
    read.sources.events.retain(|event| event.time <= until);
    read.sources.memory.retain(|record| record.steps.from <= until);
    read.sources.incidents.retain(|incident| incident.from <= until);
    let mut notes = Vec::new();
    if read.more {
        notes.push(format!("Only the newest {EVENTS_READ_MAX} events of the node were read."));
    }
    let gaps = match agent.gaps(from).await {
        Ok(gaps) => gaps.into_iter().filter(|gap| gap.from <= until).collect(),
        Err(error) => {
            tracing::debug!(%error, "cannot ask the agent for gaps");
            notes.push("The agent did not say when its history has gaps.".to_owned());
            Vec::new()
        }
    };
    let cpu = match kept::merged(context, agent, selection, (from, until)).await {
        Ok(cpu) => cpu,
        Err(error) => {
            tracing::debug!(%error, "no CPU profile");
            notes.push(
                "No CPU profile: the agent stores them by pod, and merges those of one pod.".to_owned(),
            );
            None
        }
    };
    let (facts, cpu): (Option<CpuFacts>, _) = cpu.unzip();
    let manifest = Manifest {
        version: bundle::VERSION,
        podopsy: env!("CARGO_PKG_VERSION").to_owned(),
        node: context.node(),
        subject: subject(&read.sources, selection),
        from,
        until,
        cpu: facts,
        notes,
        ..Manifest::default()
    };
    Ok(PodEvidence { manifest, sources: read.sources, gaps, cpu })
}

/// The only pod that there is something of, or else what was asked for.
fn subject(sources: &Sources, selection: &Selection) -> String {
    let mut pods: Vec<&PodRef> = sources.events.iter().filter_map(|event| event.pod.as_ref()).collect();
    pods.extend(sources.memory.iter().filter_map(|record| record.owner.pod.as_ref()));
    let is_one =
        pods.windows(2).all(|two| (&two[0].namespace, &two[0].name) == (&two[1].namespace, &two[1].name));
    match pods.first() {
        Some(pod) if is_one => format!("{}/{}", pod.namespace, pod.name),
        _ => selection.describe(),
    }
}

/// Everything that the agent has of the selection since `from`.
pub async fn records(
    context: &Context,
    agent: &AgentClient,
    selection: &Selection,
    from: Timestamp,
) -> anyhow::Result<Records> {
    let mut query: QueryParameters = vec![("from", from.to_string())];
    query.extend(selection.namespace.iter().map(|namespace| ("namespace", namespace.clone())));
    let kinds = KINDS.map(|kind| kind.as_str().to_owned()).into();
    let past = PastQuery { from, kinds, max: EVENTS_READ_MAX };
    let events = past::events(context, agent, &selection.without_targets(), &past).await?;
    let memory: Vec<MemoryRecord> = pages(agent, "/api/v1/memory", "memory", &query).await?;
    let incidents: Vec<PodIncident> = pages(agent, "/api/v1/incidents", "incidents", &query).await?;
    let pods = past::pods(agent).await;
    let mut sources = Sources { events: events.events, memory, incidents, pods };
    select(context, &mut sources, selection, from).await?;
    Ok(Records { sources, more: events.more })
}

/// Keeps what belongs to the selection.
pub async fn select(
    context: &Context,
    sources: &mut Sources,
    selection: &Selection,
    from: Timestamp,
) -> anyhow::Result<()> {
    let mut owners = past::owners_of(&sources.events);
    owners.extend(sources.memory.iter().map(|record| record.owner.clone()));
    let scopes = past::scopes(context, selection, &owners, &sources.pods, from).await?;
    keep(sources, |owner| {
        selection.has_pod(owner.pod.as_ref())
            && (scopes.is_empty() || scopes.iter().any(|scope: &OwnerScope| scope.has_owner(owner)))
    });
    Ok(())
}

fn keep(sources: &mut Sources, is_wanted: impl Fn(&Owner) -> bool) {
    let of_pod = |pod: &PodRef| Owner { pod: Some(pod.clone()), ..Owner::default() };
    sources.events.retain(|event: &Event| is_wanted(&event.owner()));
    sources.memory.retain(|record| is_wanted(&record.owner));
    sources.incidents.retain(|incident| is_wanted(&of_pod(&incident.pod)));
    for pod in &mut sources.pods {
        let owner = of_pod(&pod.pod);
        pod.containers.retain(|details| {
            is_wanted(&Owner { container: Some(details.container.clone()), ..owner.clone() })
        });
    }
}

/// The newest records of a collection.
async fn pages<T: DeserializeOwned>(
    agent: &AgentClient,
    path: &str,
    name: &str,
    query: &QueryParameters,
) -> Result<Vec<T>, ClientError> {
    #[derive(Deserialize)]
    struct Page {
        next: Option<String>,
        #[serde(flatten)]
        collections: std::collections::BTreeMap<String, serde_json::Value>,
    }
    let (mut records, mut cursor) = (Vec::new(), None);
    loop {
        let mut query = query.clone();
        query.extend([("order", "newest".to_owned()), ("limit", "1000".to_owned())]);
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let mut page: Page = agent.json(path, &query).await?;
        let items = page.collections.remove(name).unwrap_or_default();
        let items: Vec<T> =
            serde_json::from_value(items).map_err(|error| ClientError::InvalidResponse(error.to_string()))?;
        records.extend(items);
        cursor = page.next;
        if cursor.is_none() || records.len() >= RECORDS_MAX {
            return Ok(records);
        }
    }
}
