//! Every path that there is, what it takes, and who answers it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::ACCEPT;
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::{self, Answer, Refusal};
use super::{Peer, Room, live, merged, question};
use crate::metrics::text::Format;
use podopsy_pods::PodDetails;
use podopsy_recorder::incidents;
use podopsy_store::{Collection, Filter, ReadError, Reader, StoreItem, StorePage, StoredEvent};

/// How long the runtime may take to list pods.
const PODS_WITHIN: Duration = Duration::from_secs(10);
/// How long a question waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// A parameter of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    From,
    Until,
    Kind,
    Namespace,
    Pod,
    Container,
    Label,
    Order,
    Limit,
    Cursor,
}

impl Parameter {
    pub fn as_str(self) -> &'static str {
        match self {
            Parameter::From => "from",
            Parameter::Until => "until",
            Parameter::Kind => "kind",
            Parameter::Namespace => "namespace",
            Parameter::Pod => "pod",
            Parameter::Container => "container",
            Parameter::Label => "label",
            Parameter::Order => "order",
            Parameter::Limit => "limit",
            Parameter::Cursor => "cursor",
        }
    }

    pub fn repeats(self) -> bool {
        matches!(self, Parameter::Kind | Parameter::Label)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Collection(Collection, &'static str),
    Profile,
    Merged,
    Live,
    Gaps,
    Pods,
    Status,
    Openapi,
    Metrics,
    Healthz,
    Readyz,
}

/// A path, and what it takes; `{id}` stands for a number.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub path: &'static str,
    pub takes: &'static [Parameter],
    to: To,
}

use Parameter::*;
const WHOSE: [Parameter; 4] = [Namespace, Pod, Container, Label];
const PAGED: &[Parameter] = &[From, Until, Order, Limit, Cursor, WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3]];
const WINDOW: &[Parameter] = &[From, Until, WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3]];
const EVENTS: &[Parameter] =
    &[From, Until, Kind, Order, Limit, Cursor, WHOSE[0], WHOSE[1], WHOSE[2], WHOSE[3]];

pub const ROUTES: &[Route] = &[
    Route { path: "/api/v1/events", takes: EVENTS, to: To::Collection(Collection::Events, "events") },
    Route { path: "/api/v1/events/live", takes: &[Kind, Namespace, Pod, Container, Label], to: To::Live },
    Route { path: "/api/v1/incidents", takes: PAGED, to: To::Collection(Collection::Incidents, "incidents") },
    Route { path: "/api/v1/memory", takes: PAGED, to: To::Collection(Collection::Memory, "memory") },
    Route { path: "/api/v1/profiles", takes: PAGED, to: To::Collection(Collection::Profiles, "profiles") },
    Route { path: "/api/v1/profiles/merged", takes: WINDOW, to: To::Merged },
    Route { path: "/api/v1/profiles/{id}", takes: &[], to: To::Profile },
    Route { path: "/api/v1/gaps", takes: &[From, Until], to: To::Gaps },
    Route { path: "/api/v1/pods", takes: &[Namespace, Pod, Label], to: To::Pods },
    Route { path: "/api/v1/status", takes: &[], to: To::Status },
    Route { path: "/api/v1/openapi.json", takes: &[], to: To::Openapi },
    Route { path: "/metrics", takes: &[], to: To::Metrics },
    Route { path: "/healthz", takes: &[], to: To::Healthz },
    Route { path: "/readyz", takes: &[], to: To::Readyz },
];

/// Never fails: what cannot be answered is answered with the reason.
pub async fn answer(
    room: &Arc<Room>,
    peer: Peer,
    request: &Request<Incoming>,
    streams: &AtomicBool,
) -> Answer {
    let has_body = !request.body().is_end_stream();
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let result = found(peer, request.method(), has_body, path);
    let result = match result {
        Ok((route, id)) => go(room, route, id, query, format(request), streams).await,
        Err(refusal) => Err(refusal),
    };
    result.unwrap_or_else(Refusal::answer)
}

/// Which route, and the number in it.
fn found(
    peer: Peer,
    method: &Method,
    body: bool,
    path: &str,
) -> Result<(&'static Route, Option<i64>), Refusal> {
    if peer == Peer::Stranger {
        let reason = "only root and the agent's own user may ask";
        return Err(Refusal::new(StatusCode::FORBIDDEN, reason));
    }
    let matching = ROUTES.iter().find_map(|route| {
        let Some(start) = route.path.strip_suffix("{id}") else {
            return (route.path == path).then_some((route, None));
        };
        let number = path.strip_prefix(start)?;
        let digits = (1..=18).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
        Some((route, Some(number.parse().ok().filter(|_| digits)?)))
    });
    let allowed =
        |route: &Route| peer == Peer::Trusted || matches!(route.to, To::Metrics | To::Healthz | To::Readyz);
    let Some((route, id)) = matching.filter(|(route, _)| allowed(route)) else {
        let all: Vec<&str> = ROUTES.iter().filter(|route| allowed(route)).map(|route| route.path).collect();
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!("there is no such path; there are: {}", all.join(", ")),
        ));
    };
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD: nothing can be changed here",
        ));
    }
    if body {
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "a question has no body"));
    }
    Ok((route, id))
}

async fn go(
    room: &Arc<Room>,
    route: &Route,
    id: Option<i64>,
    query: &str,
    format: Format,
    streams: &AtomicBool,
) -> Result<Answer, Refusal> {
    let sources = &room.sources;
    let collection = match route.to {
        To::Collection(collection, _) => collection,
        To::Profile | To::Merged => Collection::Profiles,
        _ => Collection::Events,
    };
    let mut filter = question::filter(collection, query, route.takes)?;
    match route.to {
        To::Collection(collection, name) => {
            let page = ask(room, move |store| store.page(&filter)).await?;
            Ok(answer::text("application/json", listed(collection, name, &page).into_bytes()))
        }
        To::Profile => {
            (filter.id, filter.items) = (id, 1);
            let page = ask(room, move |store| store.page(&filter)).await?;
            let none = || Refusal::new(StatusCode::NOT_FOUND, "no such profile, or it is too old and gone");
            let item = page.items.into_iter().next().ok_or_else(none)?;
            Ok(answer::text("application/vnd.google.protobuf+gzip", item.body))
        }
        To::Merged => {
            let merged = ask(room, move |store| Ok(merged::of(store, filter))).await?;
            Ok(answer::text("application/vnd.google.protobuf+gzip", merged?))
        }
        To::Live => {
            let place = room.streams.clone().try_acquire_owned();
            let place = place.map_err(|_| {
                Refusal::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    format!("{} streams are open already", super::STREAMS),
                )
            })?;
            streams.store(true, Relaxed);
            Ok(answer::lines(live::stream(sources.live.subscribe(), filter, place)))
        }
        To::Gaps => {
            let gaps = ask(room, move |store| store.gaps(filter.from, filter.until)).await?;
            Ok(answer::json(&json!({ "gaps": gaps })))
        }
        To::Pods => Ok(answer::json(&json!({ "pods": pods(room, &filter).await? }))),
        To::Status => {
            let summary = match &sources.store {
                Some(_) => ask(room, Reader::summary).await.ok(),
                None => None,
            };
            let status = sources.pods.status();
            Ok(answer::json(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "store": summary,
                "store_trouble": sources.store.as_ref().and_then(Reader::trouble),
                "store_losses": sources.store.as_ref().map(Reader::losses),
                "ready": ready(room),
                "runtime": status.runtime,
                "containers": status.containers_known,
            })))
        }
        To::Openapi => Ok(answer::text("application/json", super::OPENAPI.as_bytes().to_vec())),
        To::Metrics => {
            let page = sources.pages.page(format).await;
            Ok(answer::text(format.content_type(), page.as_bytes().to_vec()))
        }
        To::Healthz if sources.health.is_alive() => Ok(answer::json(&json!({ "alive": true }))),
        To::Healthz => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the event pipeline stands still")),
        To::Readyz => {
            let ready = ready(room);
            let mut answer = answer::json(&ready);
            if !ready.ready {
                *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            Ok(answer)
        }
    }
}

/// What whoever scrapes can read.
fn format(request: &Request<Incoming>) -> Format {
    Format::accepted(request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()))
}

fn ready(room: &Room) -> super::health::Ready {
    let status = room.sources.pods.status();
    // A machine without a runtime has no pods to wait for.
    let cri_error = status.cri_error.filter(|_| status.cri_socket.is_some());
    room.sources.health.ready(cri_error, room.sources.store.as_ref().and_then(Reader::trouble))
}

/// Asks the store where waiting is allowed, a few at a time.
async fn ask<T: Send + 'static>(
    room: &Arc<Room>,
    question: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, Refusal> {
    let Some(store) = room.sources.store.clone() else {
        let reason = "this agent keeps no history: start it with --state-dir";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    };
    let busy = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many questions at a time: ask again");
    let turn = tokio::time::timeout(TURN_WITHIN, room.questions.acquire()).await;
    let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
    let answered = tokio::task::spawn_blocking(move || question(&store)).await;
    match answered {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(refused)) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, refused.to_string())),
        Err(_) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the question could not be worked on")),
    }
}

async fn pods(room: &Room, filter: &Filter) -> Result<Vec<PodDetails>, Refusal> {
    let unavailable = |reason: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason);
    let listed = tokio::time::timeout(PODS_WITHIN, room.sources.pods.list()).await;
    let listed = listed
        .map_err(|_| unavailable(format!("no answer from the container runtime in {PODS_WITHIN:?}")))?;
    let mut pods = listed.map_err(|error| unavailable(format!("{error:#}")))?;
    pods.retain(|PodDetails { pod, .. }| {
        filter.namespace.as_ref().is_none_or(|namespace| pod.namespace == *namespace)
            && filter.pod.as_ref().is_none_or(|name| pod.name == *name || pod.uid == *name)
            && filter.labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    });
    Ok(pods)
}

/// The page as JSON. What lies in the store is JSON already: it is put in as it is, with its id before it.
fn listed(collection: Collection, name: &str, page: &StorePage) -> String {
    let (mut out, now) = (format!("{{\"{name}\":["), Timestamp::now());
    for (at, item) in page.items.iter().enumerate() {
        out += if at == 0 { "" } else { "," };
        match collection {
            Collection::Profiles => out += &profile(item).to_string(),
            Collection::Incidents if incidents::has_ended(item.end, now) => {
                // A text's own quotes are escaped: this is the key.
                let closed = item.json().unwrap_or_default().replacen("\"open\":true", "\"open\":false", 1);
                out += &with_id(item.id, &closed);
            }
            _ => out += &with_id(item.id, &item.json().unwrap_or_default()),
        }
    }
    let next = page.next.map(|next| next.to_string());
    let _ = write!(out, "],\"next\":{},\"unreadable\":{}}}", json!(next), page.unreadable);
    out
}

fn profile(item: &StoreItem) -> Value {
    json!({
        "id": item.id,
        "from": item.begin,
        "until": item.end,
        "namespace": item.namespace,
        "pod": item.pod,
        "container": item.container,
        "container_id": item.container_id,
        "bytes": item.body.len(),
        // Null: of before there were any.
        "facts": item.facts.as_ref().and_then(|facts| serde_json::from_str::<Value>(facts).ok()),
    })
}

/// `{"id":N,` and the rest of an object.
fn with_id(id: i64, object: &str) -> String {
    match object.strip_prefix('{') {
        Some("}") | None => format!("{{\"id\":{id}}}"),
        Some(rest) => format!("{{\"id\":{id},{rest}"),
    }
}

/// An event as a stream has it: with its id, or null, where it was not kept.
pub fn event_line(stored: &StoredEvent) -> Option<Bytes> {
    let event = serde_json::to_string(&stored.event).ok()?;
    let mut line = match stored.id {
        Some(id) => with_id(id, &event),
        None => event.replacen('{', "{\"id\":null,", 1),
    };
    line.push('\n');
    Some(line.into())
}
