//! The API over real sockets: what it answers, and what it rejects.

use std::io::{Read, Write};
use std::time::Instant;

use jiff::Timestamp;
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tokio::runtime::Runtime;

use super::*;
use podopsy_model::testing::{dns, kill, owner};
use podopsy_model::{EventKind, Owner};
use podopsy_store::{ProfileRecord, Store, StoreLimits, StoreReceiver};

const SOON: Duration = Duration::from_secs(60);

struct TestAgent {
    runtime: Runtime,
    dir: TempDir,
    store: Store,
    stored_events: StoreReceiver,
    sources: Sources,
    listening: Option<ApiListener>,
}

impl TestAgent {
    fn start() -> TestAgent {
        let runtime = Runtime::new().unwrap();
        let _guard = runtime.enter();
        let dir = tempdir().unwrap();
        let (store, stored_events) = Store::start(dir.path(), "boot", StoreLimits::default()).unwrap();
        let pods =
            podopsy_pods::PodsOptions { cri_socket: Some("/nonexistent".into()), ..Default::default() };
        let pods = runtime.block_on(Pods::start(pods)).unwrap();
        let (live, _) = broadcast::channel(16);
        let health = Arc::new(Health::default());
        let metrics_page = Arc::new(super::MetricsPage::default());
        let sources = Sources { pods, store: Some(store.reader()), live, health, metrics_page };
        let listening = Some(listen(&dir.path().join("agent.sock"), sources.clone()).unwrap());
        drop(_guard);
        TestAgent { runtime, dir, store, stored_events, sources, listening }
    }

    fn put(&mut self, event: podopsy_model::Event) -> i64 {
        self.store.put(event).unwrap_or_else(|_| panic!("the queue is not full"));
        let stored = self.stored_events.recv_blocking().unwrap();
        let _ = self.sources.live.send(Arc::new(stored.clone()));
        stored.id.unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Sends the bytes as they are. Returns the status and the body.
    fn raw(&self, request: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = StdStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        // The agent may reject the request before all of it is sent.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        split(&all)
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.raw(get(path).as_bytes());
        let value = serde_json::from_slice(&body);
        (status, value.unwrap_or_else(|error| panic!("{path}: {error}: {}", String::from_utf8_lossy(&body))))
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

fn split(all: &[u8]) -> (u16, Vec<u8>) {
    let text = String::from_utf8_lossy(all);
    let status = text.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let body = all.windows(4).position(|four| four == b"\r\n\r\n").map_or(all.len(), |at| at + 4);
    (status, all[body..].to_vec())
}

fn ids(page: &Value, name: &str) -> Vec<i64> {
    page[name].as_array().unwrap().iter().map(|item| item["id"].as_i64().unwrap()).collect()
}

#[test]
fn events_are_filtered_paged_and_complete() {
    let mut agent = TestAgent::start();
    let shop = || owner("shop", "orders", &[("app", "orders")]);
    let now = Timestamp::now();
    let stored = [
        agent.put(dns(now, shop(), "one.test")),
        agent.put(kill(now, shop(), "b-1", 9, false)),
        agent.put(dns(now, Owner::default(), "two.test")),
    ];
    let (status, page) = agent.get("/api/v1/events");
    assert_eq!((status, ids(&page, "events")), (200, stored.to_vec()));
    assert_eq!((&page["next"], &page["unreadable"]), (&Value::Null, &Value::from(0)));
    assert_eq!(page["events"][0]["dns"]["name"], "one.test");
    let (_, page) =
        agent.get("/api/v1/events?kind=oom.kill&kind=oom.incident&namespace=shop&label=app%3Dorders&from=1h");
    assert_eq!(ids(&page, "events"), [stored[1]]);
    let (_, first) = agent.get("/api/v1/events?limit=2&order=newest");
    let (_, second) =
        agent.get(&format!("/api/v1/events?limit=2&order=newest&cursor={}", first["next"].as_str().unwrap()));
    let both = [ids(&first, "events"), ids(&second, "events")].concat();
    assert_eq!((both, &second["next"]), (vec![stored[2], stored[1], stored[0]], &Value::Null));

    let bytes = b"\x1f\x8b pprof".to_vec();
    agent.store.sender().put_profile(ProfileRecord {
        owner: shop(),
        begin: now,
        end: now,
        pprof: bytes.clone(),
        facts: Default::default(),
    });
    agent.put(dns(now, shop(), "after.test"));
    let (_, profiles) = agent.get("/api/v1/profiles?pod=orders");
    let id = ids(&profiles, "profiles")[0];
    assert_eq!(agent.raw(get(&format!("/api/v1/profiles/{id}")).as_bytes()), (200, bytes));
    assert_eq!(agent.get("/api/v1/profiles/1").0, 404);
    // Bytes that are no profile are skipped. A merge of no profiles is an error.
    let (status, none) = agent.get("/api/v1/profiles/merged?pod=orders");
    assert!(status == 404 && none.to_string().contains("--profile-hz"), "{none}");
    let mut one = Vec::new();
    podopsy_profiles::export::pprof::write(&podopsy_profiles::export::example::profile(), &mut one).unwrap();
    let whole = ProfileRecord { owner: shop(), begin: now, end: now, pprof: one, facts: Default::default() };
    agent.store.sender().put_profile(whole);
    agent.put(dns(now, shop(), "later.test"));
    let (status, sum) = agent.raw(get("/api/v1/profiles/merged?namespace=shop&from=1h").as_bytes());
    let sum = podopsy_profiles::import::pprof::read(&*sum, Some("samples")).unwrap();
    assert_eq!((status, sum.total()), (200, podopsy_profiles::export::example::profile().total()));
    assert_eq!(agent.get("/api/v1/gaps").1, serde_json::json!({ "gaps": [] }));
    assert_eq!(agent.get("/api/v1/status").1["store"]["records"], 7);
    assert_eq!(
        agent.raw(b"HEAD /api/v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (200, vec![])
    );
}

#[test]
fn a_wrong_request_is_rejected_with_a_reason() {
    let mut agent = TestAgent::start();
    agent.put(dns(Timestamp::now(), Owner::default(), "x.test"));
    let long = "x".repeat(1025);
    for (path, status, reason) in [
        ("/api/v1/events?limit=0", 400, "limit=0: use a number from 1 to 1000"),
        ("/api/v1/events?limit=%2B5", 400, "limit=+5: use a number"),
        ("/api/v1/events?limit=1001", 400, "limit=1001: use a number"),
        ("/api/v1/events?from=yesterday", 400, "from=yesterday: use a time"),
        ("/api/v1/events?from=1m&until=2m", 400, "from is not before until"),
        ("/api/v1/events?kind=oom", 400, "kind=oom: use one of oom.kill"),
        ("/api/v1/events?cursor=1%20OR%201", 400, "cursor=1 OR 1: use the `next`"),
        ("/api/v1/events?label=app", 400, "label=app: use key=value"),
        ("/api/v1/events?pod=a&pod=b", 400, "pod=b: given twice"),
        ("/api/v1/events?pod=%1B%5B2J&sql=1", 400, "sql: no such parameter; there are: from, until"),
        ("/api/v1/events?%1B%5B2J=1", 400, "\\x1b[2J: no such parameter"),
        ("/api/v1/events?pod=", 400, "pod=: empty"),
        (&format!("/api/v1/events?pod={long}"), 400, "longer than 1024"),
        (&format!("/api/v1/events?{}", "label=a%3Db&".repeat(65)), 400, "more than 64"),
        ("/api/v1/incidents?kind=oom.kill", 400, "kind: no such parameter"),
        ("/api/v1/status?x=1", 400, "there are: none"),
        ("/api/v1/profiles/-1", 404, "there is no such path"),
        ("/api/v1/profiles/9999999999999999999999", 404, "there is no such path"),
        ("/api/v1/../../etc/passwd", 404, "there is no such path"),
        ("/", 404, "/api/v1/events"),
    ] {
        let (got, body) = agent.get(path);
        let reason_sent = body["error"]["reason"].as_str().unwrap_or_default();
        assert_eq!((got, &body["error"]["status"]), (status, &Value::from(status)), "{path}: {reason_sent}");
        assert!(reason_sent.contains(reason) && !reason_sent.contains('\u{1b}'), "{path}: {reason_sent}");
    }
    // Hostile input is handled like any other.
    assert!(agent.get("/api/v1/events?pod=%27%3B%20DROP%20TABLE%20record%3B--").0 == 200);
    let (status, body) = agent
        .raw(b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(status == 405 && String::from_utf8(body).unwrap().contains("only GET"));
    let (status, _) =
        agent.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    assert_eq!(status, 413);
    let head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nBig: {}\r\n\r\n", "x".repeat(HEAD_BYTES * 2));
    assert_eq!(agent.raw(head.as_bytes()).0, 431);
    assert_eq!(agent.raw(b"\x16\x03\x01\x02\x00\x01\x00").0, 400);
    assert_eq!(agent.get("/healthz").0, 200);
}

#[test]
fn a_live_stream_has_only_the_events_that_match() {
    let mut agent = TestAgent::start();
    let mut stream = StdStream::connect(agent.socket()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(get("/api/v1/events/live?namespace=shop").as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut until = |text: &str| {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "it ended: {}", String::from_utf8_lossy(&seen));
            seen.extend(&buffer[..count]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    };
    // The first, empty line: the stream has begun.
    until("\r\n\r\n1\r\n\n");
    agent.put(dns(Timestamp::now(), owner("other", "web", &[]), "not-this.test"));
    let id = agent.put(dns(Timestamp::now(), owner("shop", "orders", &[]), "this.test"));
    let all = until("this.test");
    assert!(all.contains(&format!("{{\"id\":{id},\"schema\":1,")) && !all.contains("not-this"), "{all}");
}

#[test]
fn silent_connections_do_not_keep_others_out_permanently() {
    let agent = TestAgent::start();
    let silent: Vec<_> = (0..CONNECTIONS + 10).map(|_| StdStream::connect(agent.socket()).unwrap()).collect();
    // They are closed when the time for a request's head is over.
    assert_eq!(agent.get("/healthz").0, 200);
    drop(silent);
}

#[test]
fn tcp_serves_health_but_no_events() {
    let agent = TestAgent::start();
    let health = agent.sources.health.clone();
    let any = "127.0.0.1:0".parse().unwrap();
    let (address, task) = agent.runtime.block_on(listen_health(any, agent.sources.clone(), None)).unwrap();
    let ask = |path: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(get(path).as_bytes()).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let (status, body) = split(&all);
        (status, String::from_utf8(body).unwrap())
    };
    assert_eq!(ask("/healthz").0, 200);
    let (status, body) = ask("/readyz");
    assert!(status == 503 && body.contains("probes are not attached yet"), "{body}");
    health.attached(vec!["DNS is not visible".into()]);
    let ready: Value = serde_json::from_str(&ask("/readyz").1).unwrap();
    let waiting = ready["waiting_for"].to_string();
    assert!(waiting.contains("/nonexistent") || waiting.contains("container runtime"), "{ready}");
    assert_eq!(ready["degraded"][0], "DNS is not visible");
    for route in ROUTES.iter().filter(|route| route.path.starts_with("/api")) {
        assert_eq!(ask(route.path).0, 404, "{}", route.path);
    }
    task.abort();
}

#[test]
fn metrics_come_in_the_accepted_format_and_count_observed_events() {
    let agent = TestAgent::start();
    let kill = kill(Timestamp::now(), owner("shop", "orders", &[]), "b-1", 9, false);
    agent.sources.metrics_page.metrics().observe(&kill);
    let any = "127.0.0.1:0".parse().unwrap();
    let (address, task) = agent.runtime.block_on(listen_health(any, agent.sources.clone(), None)).unwrap();
    let ask = |accept: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head =
            format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned())).unwrap()
    };
    let (head, body) = ask("*/*");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(
        body.contains("podopsy_events_total{kind=\"oom.kill\"} 1\n") && !body.contains("# EOF"),
        "{body}"
    );
    let (head, body) = ask("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(
        body.contains("podopsy_oom_kills_total{namespace=\"shop\",pod=\"orders\"")
            && body.ends_with("# EOF\n"),
        "{body}"
    );
    task.abort();
}

#[test]
fn metrics_by_tcp_need_the_token_if_there_is_one() {
    let agent = TestAgent::start();
    let file = agent.dir.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    let token = Some(MetricsToken::load(&file).unwrap());
    let any = "127.0.0.1:0".parse().unwrap();
    let (address, task) = agent.runtime.block_on(listen_health(any, agent.sources.clone(), token)).unwrap();
    let ask = |path: &str, more: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}Connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all
    };
    for wrong in ["", "Authorization: Bearer s3cre\r\n", "Authorization: Basic s3cret\r\n"] {
        let answer = ask("/metrics", wrong);
        assert!(
            answer.starts_with("HTTP/1.1 401 ") && answer.contains("www-authenticate: Bearer"),
            "{answer}"
        );
        assert!(answer.contains("--metrics-token-file") && !answer.contains("podopsy_"), "{answer}");
    }
    assert!(ask("/metrics", "Authorization: Bearer s3cret\r\n").contains("podopsy_build_info"));
    assert!(ask("/healthz", "").starts_with("HTTP/1.1 200 "));
    // The socket is for root and the agent's user: no token.
    assert_eq!(agent.raw(get("/metrics").as_bytes()).0, 200);
    task.abort();
}

#[test]
fn a_client_that_asks_without_end_gets_ten_pages_a_second_and_others_do_not_wait() {
    let agent = TestAgent::start();
    let any = "[::]:0".parse().unwrap();
    let (address, task) = agent.runtime.block_on(listen_health(any, agent.sources.clone(), None)).unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    // As many connections as one address may have, each of which asks again at once, in turns for both formats.
    let flood: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut stream = std::net::TcpStream::connect(("127.0.0.1", address.port())).unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                let mut pages = 0;
                while Instant::now() < until {
                    let accept = if pages % 2 == 0 { "text/plain" } else { "application/openmetrics-text" };
                    let head = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
                    stream.write_all(head.as_bytes()).unwrap();
                    let (mut all, mut buffer) = (Vec::new(), [0; 65_536]);
                    let length = |all: &[u8]| {
                        let text = String::from_utf8_lossy(all).to_lowercase();
                        let (head, _) = text.split_once("\r\n\r\n")?;
                        let (_, rest) = head.split_once("content-length: ")?;
                        Some(head.len() + 4 + rest.split("\r\n").next()?.parse::<usize>().ok()?)
                    };
                    while length(&all).is_none_or(|length| all.len() < length) {
                        let read = stream.read(&mut buffer).unwrap();
                        assert!(read > 0, "the connection was closed");
                        all.extend(&buffer[..read]);
                    }
                    pages += 1;
                }
                pages
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(500));
        // Another address of this machine.
        let socket = std::net::TcpStream::connect(("::1", address.port()))
            .or_else(|_| std::net::TcpStream::connect(("127.0.0.1", address.port())));
        let (mut stream, began) = (socket.unwrap(), Instant::now());
        stream.write_all(get("/healthz").as_bytes()).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(split(&all).0, 200);
        slowest = slowest.max(began.elapsed());
    }
    let pages: u32 = flood.into_iter().map(|thread| thread.join().unwrap()).sum();
    // Ten a second, the burst, and one that each connection still waits for.
    assert!((20..=30 + 3 + 8 + 2).contains(&pages), "{pages} pages in three seconds");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    task.abort();
}

#[test]
fn a_successor_waits_for_the_end_of_the_agent_that_it_replaces() {
    let mut agent = TestAgent::start();
    let (path, predecessor) = (agent.socket(), agent.listening.take().unwrap());
    let successor = async {
        let end = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            drop(predecessor);
        };
        tokio::join!(super::listen_when_free(&path, agent.sources.clone()), end).0
    };
    let began = Instant::now();
    agent.listening = Some(agent.runtime.block_on(successor).unwrap());
    assert!(began.elapsed() >= Duration::from_millis(700));
    assert_eq!(agent.get("/healthz").0, 200);
}

#[test]
fn a_socket_left_by_a_dead_agent_is_replaced_and_one_in_use_is_not() {
    let mut agent = TestAgent::start();
    let path = agent.socket();
    let _guard = agent.runtime.enter();
    let error = listen(&path, agent.sources.clone()).err().unwrap().to_string();
    assert!(error.contains("another agent listens") && error.contains("--socket"), "{error}");
    agent.listening = None;
    assert!(!path.exists());
    let began = Instant::now();
    while StdStream::connect(&path).is_ok() {
        assert!(began.elapsed() < SOON);
    }
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    agent.listening = Some(listen(&path, agent.sources.clone()).unwrap());
    agent.listening = None;
    std::fs::write(&path, "precious").unwrap();
    let error = listen(&path, agent.sources.clone()).err().unwrap().to_string();
    assert!(error.contains("is no socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn an_agent_that_ends_leaves_the_socket_of_the_one_that_took_over() {
    let mut agent = TestAgent::start();
    let path = agent.socket();
    std::fs::remove_file(&path).unwrap();
    let _next = std::os::unix::net::UnixListener::bind(&path).unwrap();
    agent.listening = None;
    assert!(StdStream::connect(&path).is_ok(), "the next agent's socket is gone");
}

#[test]
fn the_openapi_description_lists_every_kind_of_event() {
    let openapi: Value = serde_json::from_str(OPENAPI).unwrap();
    let kinds: Vec<&str> = EventKind::ALL.into_iter().map(EventKind::as_str).collect();
    for path in ["/api/v1/events", "/api/v1/events/live"] {
        let parameters = openapi["paths"][path]["get"]["parameters"].as_array().unwrap();
        let kind = parameters.iter().find(|parameter| parameter["name"] == "kind").unwrap();
        assert_eq!(kind["schema"]["items"]["enum"], Value::from(kinds.clone()), "{path}");
    }
}

#[test]
fn the_openapi_description_matches_the_routes() {
    let openapi: Value = serde_json::from_str(OPENAPI).unwrap();
    let paths = openapi["paths"].as_object().unwrap();
    let described: Vec<&str> = paths.keys().map(String::as_str).collect();
    let mut there: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
    there.sort_unstable();
    let mut sorted = described.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, there);
    for route in ROUTES {
        let get = &paths[route.path]["get"];
        let parameters = get["parameters"].as_array().unwrap().iter();
        let mut described: Vec<&str> = parameters
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        let mut accepted: Vec<&str> = route.parameters.iter().map(|parameter| parameter.as_str()).collect();
        described.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(described, accepted, "{}", route.path);
        assert!(get["responses"]["200"].is_object() && get["responses"]["400"].is_object());
    }
    // Each response has the fields that the description requires.
    let mut agent = TestAgent::start();
    agent.put(dns(Timestamp::now(), owner("shop", "orders", &[]), "x.test"));
    for route in ROUTES.iter().filter(|route| {
        !route.path.contains('{') && !route.path.ends_with("/live") && route.path != "/metrics"
    }) {
        let schema = &paths[route.path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        let (status, body) = agent.get(route.path);
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let promised = required.iter().all(|field| body.get(field.as_str().unwrap()).is_some());
        // The test has no container runtime: `/pods` and `/readyz` return 503.
        assert!(status == 503 || promised, "{}: {body}", route.path);
    }
    let event = agent.get("/api/v1/events").1["events"][0].clone();
    for field in openapi["components"]["schemas"]["Event"]["required"].as_array().unwrap() {
        assert!(event.get(field.as_str().unwrap()).is_some(), "{field}: {event}");
    }
}
