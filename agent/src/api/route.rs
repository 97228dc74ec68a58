//! The routes: every path, the parameters that it accepts, and the code that answers it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use super::pace::Work;
use super::response::{self, ApiError, ApiResponse};
use super::{ApiState, Peer, body, live, merged, query};
use crate::metrics::text::Format;
use podopsy_pods::PodDetails;
use podopsy_store::{Collection, Filter, ReadError, Reader};
use podopsy_system::sync::lock;

/// How long the runtime may take to list pods.
const PODS_WITHIN: Duration = Duration::from_secs(10);
/// How long a request waits for its turn at the store.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// A parameter of a query string.
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

    /// Whether a query string may have it more than once.
    pub fn can_repeat(self) -> bool {
        matches!(self, Parameter::Kind | Parameter::Label)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
/// What a route returns.
enum Endpoint {
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

/// A path and its parameters. `{id}` in the path stands for a number.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub path: &'static str,
    pub parameters: &'static [Parameter],
    endpoint: Endpoint,
}

use Parameter::*;
/// The parameters that select an owner.
const OWNER: [Parameter; 4] = [Namespace, Pod, Container, Label];
const PAGED: &[Parameter] = &[From, Until, Order, Limit, Cursor, OWNER[0], OWNER[1], OWNER[2], OWNER[3]];
const WINDOW: &[Parameter] = &[From, Until, OWNER[0], OWNER[1], OWNER[2], OWNER[3]];
const EVENTS: &[Parameter] =
    &[From, Until, Kind, Order, Limit, Cursor, OWNER[0], OWNER[1], OWNER[2], OWNER[3]];

pub const ROUTES: &[Route] = &[
    Route {
        path: "/api/v1/events",
        parameters: EVENTS,
        endpoint: Endpoint::Collection(Collection::Events, "events"),
    },
    Route {
        path: "/api/v1/events/live",
        parameters: &[Kind, Namespace, Pod, Container, Label],
        endpoint: Endpoint::Live,
    },
    Route {
        path: "/api/v1/incidents",
        parameters: PAGED,
        endpoint: Endpoint::Collection(Collection::Incidents, "incidents"),
    },
    Route {
        path: "/api/v1/memory",
        parameters: PAGED,
        endpoint: Endpoint::Collection(Collection::Memory, "memory"),
    },
    Route {
        path: "/api/v1/profiles",
        parameters: PAGED,
        endpoint: Endpoint::Collection(Collection::Profiles, "profiles"),
    },
    Route { path: "/api/v1/profiles/merged", parameters: WINDOW, endpoint: Endpoint::Merged },
    Route { path: "/api/v1/profiles/{id}", parameters: &[], endpoint: Endpoint::Profile },
    Route { path: "/api/v1/gaps", parameters: &[From, Until], endpoint: Endpoint::Gaps },
    Route { path: "/api/v1/pods", parameters: &[Namespace, Pod, Label], endpoint: Endpoint::Pods },
    Route { path: "/api/v1/status", parameters: &[], endpoint: Endpoint::Status },
    Route { path: "/api/v1/openapi.json", parameters: &[], endpoint: Endpoint::Openapi },
    Route { path: "/metrics", parameters: &[], endpoint: Endpoint::Metrics },
    Route { path: "/healthz", parameters: &[], endpoint: Endpoint::Healthz },
    Route { path: "/readyz", parameters: &[], endpoint: Endpoint::Readyz },
];

/// Answers a request. An error becomes a response with its status and reason.
pub async fn answer(
    state: &Arc<ApiState>,
    peer: Peer,
    request: &Request<Incoming>,
    is_streaming: &AtomicBool,
) -> ApiResponse {
    let has_body = !request.body().is_end_stream();
    let query = request.uri().query().unwrap_or_default();
    let found = find(peer, request.method(), has_body, request.uri().path());
    let found = match peer {
        Peer::Anyone(address) => paced(state, address, request, found).await,
        Peer::Trusted | Peer::Stranger => found,
    };
    let result = match found {
        Ok((route, id)) => respond(state, route, id, query, format(request), is_streaming).await,
        Err(error) => Err(error),
    };
    result.unwrap_or_else(ApiError::into_response)
}

/// Waits until the client may have the next answer. A page of metrics may need a token.
async fn paced<T>(
    state: &ApiState,
    address: IpAddr,
    request: &Request<Incoming>,
    found: Result<(&'static Route, T), ApiError>,
) -> Result<(&'static Route, T), ApiError> {
    let is_page = matches!(&found, Ok((route, _)) if route.endpoint == Endpoint::Metrics);
    let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let is_refused = is_page && state.metrics_token.as_ref().is_some_and(|token| !token.is_in(authorization));
    let work = if is_page && !is_refused { Work::Page } else { Work::Other };
    let delay = lock(&state.pace).delay(address, work, Instant::now());
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if is_refused {
        let reason =
            "/metrics needs the token of --metrics-token-file, in the header Authorization: Bearer TOKEN";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, reason));
    }
    found
}

/// Finds the route, and the number in its path.
fn find(
    peer: Peer,
    method: &Method,
    has_body: bool,
    path: &str,
) -> Result<(&'static Route, Option<i64>), ApiError> {
    if peer == Peer::Stranger {
        let reason = "only root and the agent's own user may use this socket";
        return Err(ApiError::new(StatusCode::FORBIDDEN, reason));
    }
    let matching = ROUTES.iter().find_map(|route| {
        let Some(start) = route.path.strip_suffix("{id}") else {
            return (route.path == path).then_some((route, None));
        };
        let number = path.strip_prefix(start)?;
        let digits = (1..=18).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
        Some((route, Some(number.parse().ok().filter(|_| digits)?)))
    });
    let allowed = |route: &Route| {
        peer == Peer::Trusted
            || matches!(route.endpoint, Endpoint::Metrics | Endpoint::Healthz | Endpoint::Readyz)
    };
    let Some((route, id)) = matching.filter(|(route, _)| allowed(route)) else {
        let all: Vec<&str> = ROUTES.iter().filter(|route| allowed(route)).map(|route| route.path).collect();
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("there is no such path; there are: {}", all.join(", ")),
        ));
    };
    if method != Method::GET && method != Method::HEAD {
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD: the API is read-only"));
    }
    if has_body {
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "a request must not have a body"));
    }
    Ok((route, id))
}

async fn respond(
    state: &Arc<ApiState>,
    route: &Route,
    id: Option<i64>,
    query: &str,
    format: Format,
    is_streaming: &AtomicBool,
) -> Result<ApiResponse, ApiError> {
    let sources = &state.sources;
    let collection = match route.endpoint {
        Endpoint::Collection(collection, _) => collection,
        Endpoint::Profile | Endpoint::Merged => Collection::Profiles,
        _ => Collection::Events,
    };
    let mut filter = query::parse(collection, query, route.parameters)?;
    match route.endpoint {
        Endpoint::Collection(collection, name) => {
            let page = query_store(state, move |store| store.page(&filter)).await?;
            Ok(response::json(&body::page(collection, name, &page)))
        }
        Endpoint::Profile => {
            filter.id = id;
            filter.items = 1;
            let page = query_store(state, move |store| store.page(&filter)).await?;
            let none = || {
                ApiError::new(
                    StatusCode::NOT_FOUND,
                    "there is no such profile; the store may have deleted it",
                )
            };
            let item = page.items.into_iter().next().ok_or_else(none)?;
            Ok(response::bytes("application/vnd.google.protobuf+gzip", item.body))
        }
        Endpoint::Merged => {
            let merged = query_store(state, move |store| Ok(merged::merge(store, filter))).await?;
            Ok(response::bytes("application/vnd.google.protobuf+gzip", merged?))
        }
        Endpoint::Live => {
            let permit = state.streams.clone().try_acquire_owned();
            let permit = permit.map_err(|_| {
                ApiError::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    format!("{} streams are open already", super::STREAMS),
                )
            })?;
            is_streaming.store(true, Relaxed);
            Ok(response::lines(live::stream(sources.live.subscribe(), filter, permit)))
        }
        Endpoint::Gaps => {
            let gaps = query_store(state, move |store| store.gaps(filter.from, filter.until)).await?;
            Ok(response::json(&json!({ "gaps": gaps })))
        }
        Endpoint::Pods => Ok(response::json(&json!({ "pods": pods(state, &filter).await? }))),
        Endpoint::Status => {
            let summary = match &sources.store {
                Some(_) => query_store(state, Reader::summary).await.ok(),
                None => None,
            };
            let status = sources.pods.status();
            Ok(response::json(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "store": summary,
                "store_trouble": sources.store.as_ref().and_then(Reader::trouble),
                "store_losses": sources.store.as_ref().map(Reader::losses),
                "ready": readiness(state),
                "runtime": status.runtime,
                "containers": status.containers_known,
            })))
        }
        Endpoint::Openapi => Ok(response::bytes("application/json", super::OPENAPI.as_bytes().to_vec())),
        Endpoint::Metrics => {
            let page = sources.metrics_page.render(format).await;
            Ok(response::bytes(format.content_type(), page))
        }
        Endpoint::Healthz if sources.health.is_alive() => Ok(response::json(&json!({ "alive": true }))),
        Endpoint::Healthz => {
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the event pipeline has stopped"))
        }
        Endpoint::Readyz => {
            let ready = readiness(state);
            let mut response = response::json(&ready);
            if !ready.ready {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            Ok(response)
        }
    }
}

/// The format that the client accepts.
fn format(request: &Request<Incoming>) -> Format {
    Format::accepted(request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()))
}

fn readiness(state: &ApiState) -> super::health::Readiness {
    let status = state.sources.pods.status();
    // A machine without a runtime has no pods to wait for.
    let cri_error = status.cri_error.filter(|_| status.cri_socket.is_some());
    state.sources.health.readiness(cri_error, state.sources.store.as_ref().and_then(Reader::trouble))
}

/// Runs a query of the store on a thread that may block. At most [`super::STORE_QUERIES`] run at a time.
async fn query_store<T: Send + 'static>(
    state: &Arc<ApiState>,
    run: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ApiError> {
    let Some(store) = state.sources.store.clone() else {
        let reason = "this agent keeps no history: start it with --state-dir";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    };
    let busy = || {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests to the store at a time: try again")
    };
    let turn = tokio::time::timeout(TURN_WITHIN, state.store_queries.acquire()).await;
    let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
    let result = tokio::task::spawn_blocking(move || run(&store)).await;
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(refused)) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, refused.to_string())),
        Err(_) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the query of the store panicked")),
    }
}

async fn pods(state: &ApiState, filter: &Filter) -> Result<Vec<PodDetails>, ApiError> {
    let unavailable = |reason: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason);
    let listed = tokio::time::timeout(PODS_WITHIN, state.sources.pods.list()).await;
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
