//! The store under `kill -9`: a hundred runs that write as fast as they can, each killed at a random moment.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use podopsy_model::testing::{dns, kill};
use podopsy_model::{Detail, Event, Owner};
use podopsy_store::{Collection, Filter, GapReason, Reader, Store, StoreLimits};

const RUNS: u64 = 100;
/// Environment variables that make this test's program the process that is killed.
const DIR: &str = "PODOPSY_TEST_STORE";
const RUN: &str = "PODOPSY_TEST_RUN";

/// A kill that every run stores again, as a restart does with the kills in the kernel's log.
fn repeated_kill(number: u64, recovered: bool) -> Event {
    kill(Timestamp::now(), Owner::default(), &format!("boot-{number}"), 9, recovered)
}

/// One run: prints each event that comes out of the store, until it is killed.
#[test]
#[ignore = "run and killed by the test below"]
fn writer_that_is_killed() {
    let (Ok(dir), Ok(run)) = (std::env::var(DIR), std::env::var(RUN)) else { return };
    let run: u64 = run.parse().expect("a number");
    let (store, mut receiver) = Store::start(Path::new(&dir), "boot", StoreLimits::default()).expect("start");
    std::thread::spawn(move || {
        let _ = store.put(repeated_kill(run, false));
        for before in 0..run {
            let _ = store.put(repeated_kill(before, true));
        }
        for n in 0u64.. {
            if store.put(dns(Timestamp::now(), Owner::default(), &format!("{run}.{n}"))).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if n % 16 == 0 {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    });
    while let Some(stored) = receiver.recv_blocking() {
        let (Some(id), Detail::Dns(lookup)) = (stored.id, &stored.event.detail) else { continue };
        let line = format!("stored {id} {} {}\n", lookup.name.as_deref().unwrap_or(""), stored.event.time);
        std::io::stderr().write_all(line.as_bytes()).expect("print it");
    }
}

#[test]
fn a_hundred_kills_lose_and_repeat_no_event_that_came_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut stored: BTreeMap<i64, (String, Timestamp)> = BTreeMap::new();
    for run in 0..RUNS {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "writer_that_is_killed", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .env(RUN, run.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run it");
        let output = BufReader::new(child.stderr.take().expect("its output"));
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut begun = None;
        let lifetime = Duration::from_micros(seed % 60_000);
        // Read what it printed before it was killed, up to the last whole line.
        for line in output.split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line);
            let Some(fields) = text.strip_prefix("stored ") else { continue };
            let fields: Vec<&str> = fields.split(' ').collect();
            let [id, name, time] = fields[..] else { break };
            let (Ok(id), Ok(time)) = (id.parse(), time.parse()) else { break };
            assert!(stored.insert(id, (name.to_owned(), time)).is_none(), "an id was given twice: {id}");
            let since = *begun.get_or_insert_with(Instant::now);
            if since.elapsed() >= lifetime {
                // SIGKILL. Some lines may still be in the pipe.
                let _ = child.kill();
            }
        }
        let end = child.wait().expect("its end");
        assert!(begun.is_some() && !end.success(), "run {run} was to be killed: {end:?}");
    }

    let file = dir.path().join("store.db");
    let check = |pragma: &str| -> String {
        let connection = rusqlite::Connection::open(&file).expect("open it");
        connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).expect("check it")
    };
    assert_eq!(check("integrity_check"), "ok");

    let reader = Reader::open(dir.path());
    let (mut names, mut kills, mut after) = (BTreeMap::new(), BTreeSet::new(), None);
    loop {
        let page = reader.page(&Filter { after, ..Filter::all(Collection::Events) }).expect("a page");
        assert_eq!(page.unreadable, 0);
        for item in page.items {
            match item.parse::<Event>().expect("an event").detail {
                Detail::Dns(lookup) => {
                    let name = lookup.name.expect("its name");
                    assert!(names.insert(name, item.id).is_none(), "stored twice: {}", item.id);
                }
                Detail::Oom(kill) => {
                    assert!(!kill.recovered, "an observed kill was replaced: {:?}", kill.incident);
                    assert!(kills.insert(kill.incident.clone()), "stored twice: {:?}", kill.incident);
                }
                other => panic!("{other:?}"),
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(stored.len() as u64 > RUNS * 10, "{} events came out: too few for this test", stored.len());
    for (id, (name, _)) in &stored {
        assert_eq!(names.get(name), Some(id), "came out and is not in the file: {name}");
    }
    assert_eq!(kills.len() as u64, RUNS);

    let gaps = reader.gaps(Timestamp::UNIX_EPOCH, Timestamp::MAX).expect("the gaps");
    assert_eq!(gaps.len() as u64, RUNS - 1, "one between any two runs");
    for gap in &gaps {
        assert_eq!(gap.reason, GapReason::Died);
        assert!(gap.begin_ns <= gap.end_ns);
        let inside = stored.values().find(|(_, time)| {
            let ns = time.as_nanosecond();
            ns > i128::from(gap.begin_ns) && ns < i128::from(gap.end_ns)
        });
        assert_eq!(inside, None, "an event lies in a gap: {gap:?}");
    }
    println!(
        "{RUNS} runs killed: {} came out, {} in the file, {} gaps",
        stored.len(),
        names.len(),
        gaps.len()
    );
}
