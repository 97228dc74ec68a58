//! Many agents in one thread: each a socket, and kills that are made when they are asked for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::{SignedDuration, Timestamp};
use podopsy_model::incident::{ProcessRow, ProcessTable};
use podopsy_model::memory::Curve;
use podopsy_model::testing::{incident, kill, owner};
use podopsy_model::{Event, EventKind, OomIncident};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

pub struct SimulatedAgents {
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    /// An event as JSON, around its time.
    template: (String, String),
    began: Timestamp,
    events: u64,
    sent_events: AtomicU64,
    sent_bytes: AtomicU64,
}

impl SimulatedAgents {
    pub fn start(agents: u32, events: u64) -> SimulatedAgents {
        let folder = tempfile::tempdir().unwrap();
        let began = Timestamp::now();
        let json = serde_json::to_string(&event(began)).unwrap();
        let (before, after) = json.split_once(&began.to_string()).unwrap();
        let shared = Arc::new(Shared {
            template: (before.to_owned(), after.to_owned()),
            began,
            events,
            sent_events: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _guard = runtime.enter();
        for n in 0..agents {
            let listener = UnixListener::bind(folder.path().join(format!("node-{n:03}.sock"))).unwrap();
            let shared = shared.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = serve(stream, &shared, u64::from(n)).await;
                }
            });
        }
        drop(_guard);
        SimulatedAgents { folder, shared, _runtime: runtime }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How many events were sent, and how many bytes.
    pub fn sent(&self) -> (u64, u64) {
        (self.shared.sent_events.load(Relaxed), self.shared.sent_bytes.load(Relaxed))
    }
}

/// A kill with a process table and a memory curve, some KiB of JSON.
fn event(time: Timestamp) -> Event {
    let row = |pid| ProcessRow {
        pid,
        comm: format!("worker-{pid}"),
        rss_bytes: 1 << 20,
        swap_bytes: 0,
        oom_score_adj: 999,
        share: Some(0.01),
        victim: false,
    };
    let column: Vec<u64> = (0..60).map(|second| second << 20).collect();
    let curve = Curve {
        time: (0..60).map(|second| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second)).collect(),
        current_bytes: column.clone(),
        anon_bytes: column.clone(),
        file_bytes: column.clone(),
        shmem_bytes: column.clone(),
        kernel_bytes: column,
        growth_bytes_per_second: Some(1e6),
        pressure: Some(0.03),
    };
    let rows = (1..=20).map(row).collect();
    let processes = ProcessTable { source: "kernel log".into(), rows, others: 0, others_rss_bytes: 0 };
    let incident = OomIncident { processes: Some(processes), curve: Some(curve), ..incident() };
    let event = kill(time, owner("shop", "orders", &[("app", "orders")]), &incident.id, 9, false);
    Event { kind: EventKind::OomIncident, incident: Some(Box::new(incident)), ..event }
}

/// Answers requests until the client closes the connection.
async fn serve(stream: UnixStream, shared: &Shared, agent: u64) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while line.trim() != "" {
            line.clear();
            stream.read_line(&mut line).await?;
        }
        let body = answer(shared, agent, &target);
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        shared.sent_bytes.fetch_add(body.len() as u64, Relaxed);
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
    }
}

fn answer(shared: &Shared, agent: u64, target: &str) -> String {
    if target.starts_with("/api/v1/status") {
        return format!(r#"{{"version":"{}"}}"#, env!("CARGO_PKG_VERSION"));
    }
    if target.starts_with("/api/v1/gaps") {
        return r#"{"gaps":[]}"#.to_owned();
    }
    let (_, query) = target.split_once('?').unwrap_or_default();
    let value =
        |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == name);
    let number = |name| value(name).and_then(|(_, text)| text.parse::<u64>().ok());
    let from: Timestamp = value("from").unwrap().1.replace("%3A", ":").parse().unwrap();
    let (first, limit) = (number("cursor").unwrap_or(0), number("limit").unwrap_or(100));
    // The events of an hour, and those of each agent at other times.
    let time = |n: u64| shared.began - SignedDuration::from_micros((n * 359_000 + agent * 700) as i64);
    let page: Vec<u64> =
        (first..(first + limit).min(shared.events)).take_while(|n| time(*n) >= from).collect();
    let events: Vec<String> =
        page.iter().map(|n| format!("{}{}{}", shared.template.0, time(*n), shared.template.1)).collect();
    shared.sent_events.fetch_add(page.len() as u64, Relaxed);
    let next =
        page.last().map(|last| last + 1).filter(|next| page.len() as u64 == limit && *next < shared.events);
    let next = next.map_or("null".to_owned(), |next| format!("\"{next}\""));
    format!(r#"{{"events":[{}],"next":{next},"unreadable":0}}"#, events.join(","))
}
