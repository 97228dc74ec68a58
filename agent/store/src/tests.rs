//! The store on working and failing disks. For the store under `kill -9` see `agent/store/tests/store.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use jiff::SignedDuration;
use rusqlite::Connection;
use tempfile::{TempDir, tempdir};

use super::*;
use podopsy_model::memory::MemorySteps;
use podopsy_model::testing::{dns, kill, owner};

const SOON: Duration = Duration::from_secs(60);

fn start(dir: &Path, limits: StoreLimits) -> (Store, StoreReceiver) {
    Store::start(dir, "boot", limits).unwrap()
}

/// Puts an event in and waits until it comes out. None: it was not stored.
fn put(store: &Store, receiver: &mut StoreReceiver, event: Event) -> Option<i64> {
    store.put(event.clone()).unwrap();
    let stored = receiver.recv_blocking().unwrap();
    assert_eq!(stored.event, event);
    stored.id
}

fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !true_now() {
        assert!(Instant::now() < end, "no {what} within {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn now() -> Timestamp {
    Timestamp::now()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn files(dir: &TempDir) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn stored_events_are_found_by_each_filter() {
    let dir = tempdir().unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    let shop = || owner("shop", "orders", &[("app", "orders"), ("tier", "x=y")]);
    let events = [
        dns(ago(30), shop(), "one.test"),
        dns(ago(20), owner("other", "web", &[("app", "web")]), "two.test"),
        dns(ago(10), Owner::default(), "three.test"),
        kill(ago(5), shop(), "b-1", 9, false),
    ];
    let ids: Vec<_> = events.iter().map(|event| put(&store, &mut receiver, event.clone()).unwrap()).collect();
    let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let reader = store.reader();
    let found = |filter: &Filter| -> Vec<i64> {
        reader.page(filter).unwrap().items.iter().map(|item| item.id).collect()
    };
    let all = || Filter::all(Collection::Events);
    assert_eq!(found(&all()), ids);
    assert_eq!(found(&Filter { newest_first: true, ..all() }), ids.iter().rev().copied().collect::<Vec<_>>());
    assert_eq!(found(&Filter { from: ago(25), until: ago(7), ..all() }), ids[1..3]);
    assert_eq!(found(&Filter { kinds: vec!["oom.kill".into(), "none".into()], ..all() }), ids[3..]);
    assert_eq!(found(&Filter { namespace: Some("other".into()), ..all() }), ids[1..2]);
    assert_eq!(found(&Filter { pod: Some("orders".into()), ..all() }), [ids[0], ids[3]]);
    assert_eq!(found(&Filter { pod: Some("uid-of-web".into()), ..all() }), ids[1..2]);
    assert_eq!(found(&Filter { container: Some("app".into()), ..all() }), [ids[0], ids[1], ids[3]]);
    let with = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        found(&Filter { labels, ..all() })
    };
    assert_eq!(with(&[("app", "orders"), ("tier", "x=y")]), [ids[0], ids[3]]);
    assert_eq!((with(&[("app", "order")]), with(&[("app", "web"), ("tier", "x=y")])), (vec![], vec![]));
    let page = reader.page(&all()).unwrap();
    assert_eq!(page.items[0].parse::<Event>().unwrap(), events[0]);
    assert_eq!((page.next, page.unreadable), (None, 0));
}

#[test]
fn pages_meet_without_a_gap_or_an_overlap() {
    let dir = tempdir().unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    let time = ago(60);
    // Several events of the same time, which only the id distinguishes.
    for n in 0..23i64 {
        let time = time + SignedDuration::from_secs(n / 5);
        put(&store, &mut receiver, dns(time, Owner::default(), &format!("{n}.test"))).unwrap();
    }
    for newest_first in [false, true] {
        let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let all = Filter::all(Collection::Events);
            let page = store.reader().page(&Filter { items: 4, newest_first, after, ..all }).unwrap();
            seen.extend(page.items.iter().map(|item| item.id));
            pages += 1;
            let Some(next) = page.next else { break };
            after = Some(next.to_string().parse().unwrap());
        }
        if newest_first {
            seen.reverse();
        }
        assert_eq!((seen.len(), pages), (23, 6));
        assert!(seen.is_sorted() && seen.windows(2).all(|two| two[0] != two[1]), "{seen:?}");
    }
    for text in ["", "-", "1", "1-", "-1-1", "+1-1", "1-1-1", "99999999999999999999-1", "1-x"] {
        assert!(text.parse::<Cursor>().is_err(), "{text}");
    }
}

#[test]
fn an_event_that_a_restart_reads_again_is_stored_once_and_not_passed_on() {
    let dir = tempdir().unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    let seen = kill(ago(5), owner("shop", "orders", &[]), "b-1", 9, false);
    let id = put(&store, &mut receiver, seen.clone()).unwrap();
    // The same kill recovered from the kernel's log, without the pod.
    store
        .put(kill(ago(5), Owner::default(), "b-1", 9, true))
        .unwrap_or_else(|_| panic!("the queue is empty"));
    let other = put(&store, &mut receiver, kill(ago(4), Owner::default(), "b-1", 10, true)).unwrap();
    // In the opposite order, the observed kill replaces the recovered one.
    assert_eq!(put(&store, &mut receiver, kill(ago(4), owner("a", "b", &[]), "b-1", 10, false)), Some(other));
    // All are finished, whether they were passed on or not.
    until("all are finished", || store.event_counts() == (4, 4));
    let page = store.reader().page(&Filter::all(Collection::Events)).unwrap();
    assert_eq!(page.items.len(), 2);
    assert_eq!((page.items[0].id, page.items[0].parse::<Event>().unwrap()), (id, seen));
    assert_eq!(page.items[1].pod.as_deref(), Some("b"));
}

#[test]
fn memory_profiles_and_incidents_have_their_own_collections() {
    let dir = tempdir().unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    let owner = owner("shop", "orders", &[]);
    let steps = MemorySteps { from: ago(60), until: ago(40), step: vec![0], ..MemorySteps::default() };
    let mut memory = MemoryRecord { owner: owner.clone(), steps };
    let sender = store.sender();
    sender.put_memory(&memory);
    // A record that grows stays one record. A record without a sample is not stored.
    memory.steps = MemorySteps { until: ago(1), step: vec![0, 1], current_bytes: vec![1, 2], ..memory.steps };
    sender.put_memory(&memory);
    sender.put_memory(&MemoryRecord { steps: MemorySteps::default(), ..memory.clone() });
    let pprof = b"\x1f\x8bnot really".to_vec();
    sender.put_profile(ProfileRecord {
        owner: owner.clone(),
        begin: ago(60),
        end: ago(1),
        pprof: pprof.clone(),
        facts: ProfileFacts { samples: 7, ..ProfileFacts::default() },
    });
    for text in ["first", "last"] {
        store.put_incident("i-1", (ago(60), ago(1)), &owner, &serde_json::json!({ "text": text }));
    }
    put(&store, &mut receiver, dns(now(), owner, "x.test")).unwrap();
    let one = |collection| {
        // A span in the middle of the record.
        let filter = Filter { from: ago(30), until: ago(20), ..Filter::all(collection) };
        let mut page = store.reader().page(&filter).unwrap();
        assert_eq!(page.items.len(), 1, "{collection:?}");
        page.items.remove(0)
    };
    assert_eq!(one(Collection::Memory).parse::<MemoryRecord>().unwrap(), memory);
    assert_eq!(one(Collection::Profiles).body, pprof);
    assert!(one(Collection::Incidents).json().unwrap().contains("last"));
    let summary = store.reader().summary().unwrap();
    assert_eq!(summary.records, 4);
    assert!(summary.bytes > 0 && summary.oldest.unwrap() < ago(50));
}

/// The size of all files, the log and its index included.
fn folder_bytes(dir: &TempDir) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata());
    files.map(|file| file.map_or(0, |file| file.len())).sum()
}

#[test]
fn a_flood_takes_only_its_share_and_the_folder_stays_below_its_limit() {
    let dir = tempdir().unwrap();
    let limits = StoreLimits { bytes: StoreLimits::BYTES_MIN, ..StoreLimits::default() };
    let (store, mut receiver) = start(dir.path(), limits);
    let precious =
        put(&store, &mut receiver, kill(ago(3600), owner("a", "b", &[]), "b-1", 9, false)).unwrap();
    // Ten times more than fits, with names that do not compress.
    let mut seed = 1u64;
    let mut largest = 0;
    for n in 0..20_000 {
        let name: String = (0..40)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b'a' + (seed >> 59) as u8 % 26)
            })
            .collect();
        let mut event = dns(now(), owner("shop", "orders", &[]), &name);
        while let Err(again) = store.put(event) {
            event = *again;
            receiver.recv_blocking().unwrap();
        }
        if n % 64 == 0 {
            largest = largest.max(folder_bytes(&dir));
        }
    }
    let reader = store.reader();
    store.close();
    while receiver.recv_blocking().is_some() {}
    drop(store);
    assert!(largest <= limits.bytes && largest > limits.bytes / 2, "{largest}");
    let first =
        reader.page(&Filter { kinds: vec!["oom.kill".into()], ..Filter::all(Collection::Events) }).unwrap();
    assert_eq!(first.items.iter().map(|item| item.id).collect::<Vec<_>>(), [precious]);
    let newest = Filter { newest_first: true, items: 1, ..Filter::all(Collection::Events) };
    assert!(reader.page(&newest).unwrap().items[0].begin > ago(60));
}

#[test]
fn a_pod_that_floods_a_share_evicts_its_own_records() {
    let dir = tempdir().unwrap();
    let limits = StoreLimits { bytes: StoreLimits::BYTES_MIN, ..StoreLimits::default() };
    let run = AgentRun { boot: "boot".into(), began_ns: 5 };
    let mut file = file::File::open(&dir.path().join(FILE), run, limits, 5).unwrap();
    let row = |second: i64, pod: &str, name: &str| {
        let event = dns(row::time(second * 1_000_000_000), owner("shop", pod, &[]), name);
        StoreRow::from_event(&event).unwrap()
    };
    file.write(&[row(1, "neighbour", "first.example.")], None, 5).unwrap();
    for second in 2..400 {
        // Ten a second of the flood, each with a name of its own; one of the neighbour.
        let flood = (0..10).map(|n| row(second, "flood", &format!("{second}-{n}.{}", "x".repeat(200))));
        let rows: Vec<StoreRow> = flood.chain([row(second, "neighbour", "again.example.")]).collect();
        file.write(&rows, None, second).unwrap();
    }
    let mut deleted = 0;
    while deleted < 3000 {
        deleted += file.delete_oldest(400_000_000_000).unwrap();
    }
    drop(file);
    let filter = Filter { pod: Some("neighbour".into()), items: 1000, ..Filter::all(Collection::Events) };
    let left = Reader::open(dir.path()).page(&filter).unwrap();
    assert_eq!(left.items.len(), 399);
}

#[test]
fn old_records_except_kills_are_deleted_and_the_file_shrinks() {
    let dir = tempdir().unwrap();
    let run = || AgentRun { boot: "boot".into(), began_ns: 5 };
    let path = dir.path().join(FILE);
    let limits = StoreLimits { age: Duration::from_secs(100), ..StoreLimits::default() };
    let mut file = file::File::open(&path, run(), limits, 5).unwrap();
    let rows = |from: i64, count: i64| -> Vec<StoreRow> {
        let event = |n| dns(row::time(n * 1_000_000_000), owner("shop", "orders", &[]), &"x".repeat(200));
        (from..from + count).map(|n| StoreRow::from_event(&event(n)).unwrap()).collect()
    };
    for batch in 0..20 {
        file.write(&rows(batch * 500, 500), None, 5).unwrap();
    }
    let old_kill = kill(row::time(1_000_000_000), owner("shop", "orders", &[]), "3f2a-1", 7, false);
    file.write(&[StoreRow::from_event(&old_kill).unwrap()], None, 5).unwrap();
    let before = file.sizes().unwrap();
    let (mut steps, mut longest) = (0, Duration::ZERO);
    let mut tidy = || {
        let began = Instant::now();
        let more = file.tidy(9_990_000_000_000).unwrap();
        longest = longest.max(began.elapsed());
        more
    };
    while tidy() {
        steps += 1;
        assert!(steps < 10_000, "tidying must end");
    }
    let after = file.sizes().unwrap();
    println!("{before:?} → {after:?} in {steps} steps, the longest {longest:?}");
    assert!(steps > 70 && after.1 < before.1 / 2, "{before:?} → {after:?} in {steps} steps");
    drop(file);
    let left = Reader::open(dir.path()).page(&Filter::all(Collection::Events)).unwrap();
    assert_eq!(left.items[0].parse::<Event>().unwrap(), old_kill);
    assert_eq!((left.items.len(), left.items[1].begin), (111, row::time(9_890_000_000_000)));
}

#[test]
fn a_file_of_version_1_is_read_and_written() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(FILE);
    let old = dns(ago(50), owner("shop", "orders", &[]), "old.test");
    testing::write_version_1(dir.path(), &old).unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    let new = dns(ago(40), owner("shop", "orders", &[("app", "x")]), "new.test");
    put(&store, &mut receiver, new.clone()).unwrap();
    let page = store
        .reader()
        .page(&Filter { pod: Some("orders".into()), ..Filter::all(Collection::Events) })
        .unwrap();
    let events: Vec<Event> = page.items.iter().map(|item| item.parse().unwrap()).collect();
    assert_eq!((page.items[0].id, events), (testing::ID, vec![old, new]));
    drop(store);
    let version = Connection::open(&path).unwrap();
    let version: i64 = version.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version as usize, schema::STEPS.len());
}

#[test]
fn a_foreign_newer_or_damaged_file_is_quarantined_unchanged() {
    let foreign = |path: &Path| {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("CREATE TABLE song (title TEXT)").unwrap();
    };
    let future = |path: &Path| {
        drop(
            file::File::open(path, AgentRun { boot: "b".into(), began_ns: 1 }, StoreLimits::default(), 1)
                .unwrap(),
        );
        Connection::open(path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    };
    let garbage = |path: &Path| fs::write(path, b"no database at all".repeat(1000)).unwrap();
    for spoil in [&foreign as &dyn Fn(&Path), &future, &garbage] {
        let dir = tempdir().unwrap();
        let path = dir.path().join(FILE);
        spoil(&path);
        let before = fs::read(&path).unwrap();
        let (store, mut receiver) = start(dir.path(), StoreLimits::default());
        assert!(put(&store, &mut receiver, dns(now(), Owner::default(), "x.test")).is_some());
        assert_eq!(store.losses(), [("store_put_aside".to_owned(), 1)].into());
        let quarantined = files(&dir).into_iter().find(|name| name.contains(".aside-")).unwrap();
        assert_eq!(fs::read(dir.path().join(quarantined)).unwrap(), before);
        let gaps = store.reader().gaps(ago(60), now()).unwrap();
        assert_eq!(gaps.iter().map(|gap| gap.reason).collect::<Vec<_>>(), [GapReason::Quarantined]);
    }
}

/// Flips bits anywhere in a store between two runs. Whatever they hit, events must still come out, and what is read must
/// be intact or rejected.
#[test]
fn flipped_bits_lose_at_most_the_records_that_they_hit() {
    // A fixed seed, so that a failure can be reproduced.
    let mut random = fastrand::Rng::with_seed(1);
    let (mut quarantined, mut skipped) = (0, 0);
    for _ in 0..12 {
        let dir = tempdir().unwrap();
        let path = dir.path().join(FILE);
        let (store, mut receiver) = start(dir.path(), StoreLimits::default());
        for n in 0..100 {
            let event =
                dns(now(), owner("shop", "orders", &[("app", "x")]), &format!("{n}.{}", "x".repeat(300)));
            store.put(event).unwrap_or_else(|_| panic!("the queue is not full"));
        }
        for _ in 0..100 {
            receiver.recv_blocking().unwrap();
        }
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        for _ in 0..random.u8(1..=64) {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        }
        fs::write(&path, bytes).unwrap();
        let (store, mut receiver) = start(dir.path(), StoreLimits::default());
        let reader = store.reader();
        for n in 0..5 {
            let event = dns(now(), owner("shop", "orders", &[]), &format!("after.{n}"));
            put(&store, &mut receiver, event);
            if let Ok(page) = reader.page(&Filter::all(Collection::Events)) {
                skipped += page.unreadable;
            }
        }
        // In the end a store works: the old one or a new one.
        until("store that takes records", || {
            let event = dns(now(), Owner::default(), "end.test");
            let id = put(&store, &mut receiver, event);
            let newest = Filter { newest_first: true, items: 1, ..Filter::all(Collection::Events) };
            id.is_some()
                && reader.page(&newest).is_ok_and(|page| page.items.iter().any(|item| Some(item.id) == id))
        });
        quarantined += store.losses().get("store_put_aside").copied().unwrap_or(0);
    }
    println!("12 files: {quarantined} quarantined, {skipped} records skipped");
    assert!(quarantined > 0, "some damage must be found");
}

#[test]
fn a_store_that_cannot_be_written_recovers_by_itself() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(FILE);
    // Root ignores file modes, but a folder in the file's place fails for every user.
    fs::create_dir(&path).unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    for n in 0..3 {
        assert_eq!(put(&store, &mut receiver, dns(now(), Owner::default(), &format!("{n}.test"))), None);
    }
    assert_eq!(store.losses(), [("store_not_written".to_owned(), 3)].into());
    assert!(store.trouble().unwrap().contains("store.db"));
    assert!(matches!(store.reader().page(&Filter::all(Collection::Events)), Err(ReadError::Failed(_))));
    fs::remove_dir(&path).unwrap();
    until("store that is written again", || {
        put(&store, &mut receiver, dns(now(), Owner::default(), "again.test")).is_some()
    });
    assert_eq!(store.trouble(), None);
    let gaps = store.reader().gaps(ago(600), now()).unwrap();
    let [gap] = gaps[..] else { panic!("{gaps:?}") };
    assert_eq!(gap.reason, GapReason::NotWritten);
    assert_eq!(gap.lost, store.losses()["store_not_written"]);
}

#[test]
fn a_full_queue_is_bounded_and_counts_what_does_not_fit() {
    let dir = tempdir().unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    // Events that the receiver has not taken still occupy the queue.
    let refused = (0..QUEUE + 50)
        .filter(|n| store.put(dns(now(), Owner::default(), &format!("{n}.test"))).is_err())
        .count();
    assert_eq!(refused, 50);
    assert_eq!(store.losses(), [("store_queue_full".to_owned(), 50)].into());
    receiver.recv_blocking().unwrap();
    assert!(store.put(dns(now(), Owner::default(), "space.test")).is_ok());
}

#[test]
fn a_query_without_an_end_is_interrupted_in_time() {
    let dir = tempdir().unwrap();
    let (store, mut receiver) = start(dir.path(), StoreLimits::default());
    put(&store, &mut receiver, dns(now(), Owner::default(), "x.test")).unwrap();
    let began = Instant::now();
    let forever = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let refused =
        store.reader().ask(|connection| connection.query_row(forever, [], |row| row.get::<_, i64>(0)));
    assert!(matches!(refused, Err(ReadError::Timeout)));
    assert!(began.elapsed() < SOON);
}
