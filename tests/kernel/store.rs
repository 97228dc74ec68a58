//! The store on a full and on a read-only disk, and the API's socket used by another user: both need root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support;
use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podopsy_agent::api::{self, Health, Sources};
use podopsy_model::Owner;
use podopsy_model::testing::dns;
use podopsy_pods::Pods;
use podopsy_store::{GapReason, Store, StoreLimits, StoreReceiver};

const SOON: Duration = Duration::from_secs(60);

/// Puts `count` events, and waits until all are returned; whether the last one was kept.
fn put(store: &Store, returned: &mut StoreReceiver, count: usize) -> bool {
    for n in 0..count {
        // Names that compress badly fill the disk soon.
        let name: String = (0..30).map(|at| format!("{:x}.", (n * 7919 + at * 104_729) % 65_521)).collect();
        store
            .put(dns(Timestamp::now(), Owner::default(), &name))
            .unwrap_or_else(|_| panic!("the queue is full"));
    }
    (0..count).fold(false, |_, _| returned.recv_blocking().expect("each is returned").id.is_some())
}

fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !true_now() {
        assert!(Instant::now() < end, "no {what} within {SOON:?}");
    }
}

/// A tmpfs, unmounted when this is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Disk {
        let dir = tempfile::tempdir().expect("a folder");
        let options = format!("size={size}");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("mount it");
        Disk(dir)
    }

    fn read_only(&self, yes: bool) -> nix::Result<()> {
        let flags = if yes { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        mount(None::<&str>, self.0.path(), None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Asserts that no kept event is lost, and that the gaps count those that were not kept.
fn account(store: &Store, kept: usize) {
    let found = support::stored(&store.reader()).len();
    assert!(found >= kept, "{found} of {kept} that were kept");
    let gaps = store.reader().gaps(Timestamp::UNIX_EPOCH, Timestamp::MAX).expect("the gaps");
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap.reason == GapReason::NotWritten), "{gaps:?}");
    let lost: u64 = gaps.iter().map(|gap| gap.lost).sum();
    assert_eq!(Some(&lost), store.losses().get("store_not_written"), "{gaps:?}");
    assert_eq!((store.trouble(), store.losses().get("store_put_aside")), (None, None));
}

#[test]
fn a_full_disk_interrupts_the_history_but_not_the_events() {
    support::require_root();
    let disk = Disk::new("3m");
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).expect("half of the disk");
    let (store, mut returned) = Store::start(disk.0.path(), "boot", StoreLimits::default()).expect("start");
    let mut kept = 0;
    until("full disk", || {
        let all = put(&store, &mut returned, 100);
        kept += if all { 100 } else { 0 };
        !all
    });
    let trouble = store.trouble().expect("it has a reason");
    assert!(trouble.contains("full"), "{trouble}");
    // When there is space again, the store continues by itself.
    std::fs::remove_file(&ballast).expect("free some space");
    until("store that is written again", || put(&store, &mut returned, 1));
    account(&store, kept);
}

#[test]
fn a_disk_that_turns_read_only_is_survived() {
    support::require_root();
    let disk = Disk::new("8m");
    let (store, mut returned) = Store::start(disk.0.path(), "boot", StoreLimits::default()).expect("start");
    assert!(put(&store, &mut returned, 10));
    // The kernel refuses the remount while a file is open for writing: the store is closed, and fails to open its files
    // again.
    drop((store, returned));
    disk.read_only(true).expect("remount it");
    let (store, mut returned) = Store::start(disk.0.path(), "boot", StoreLimits::default()).expect("start");
    assert!(!put(&store, &mut returned, 10));
    let trouble = store.trouble().expect("it has a reason");
    assert!(trouble.to_lowercase().contains("read-only"), "{trouble}");
    disk.read_only(false).expect("remount it");
    until("store that is written again", || put(&store, &mut returned, 1));
    let gaps = store.reader().gaps(Timestamp::UNIX_EPOCH, Timestamp::MAX).expect("the gaps");
    let mut reasons: Vec<_> = gaps.iter().map(|gap| gap.reason).collect();
    reasons.sort_by_key(|reason| reason.as_str());
    assert_eq!(reasons, [GapReason::NotWritten, GapReason::Stopped]);
    assert_eq!(gaps.iter().map(|gap| gap.lost).sum::<u64>(), store.losses()["store_not_written"]);
}

/// A client that runs as the user nobody: it connects, sends a request, and prints the response.
fn as_nobody(socket: &Path) -> (String, String) {
    let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                  s.sendall(b'GET /api/v1/events HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'); \
                  print(b''.join(iter(lambda: s.recv(65536), b'')).decode())";
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", script]).arg(socket).uid(65534).gid(65534);
    let output = python.output().expect("python3: `cargo xtask setup` installs it");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (text(output.stdout), text(output.stderr))
}

#[test]
fn no_other_user_reads_anything_through_the_socket() {
    support::require_root();
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let _guard = runtime.enter();
    let dir = tempfile::tempdir().expect("a folder");
    let (store, mut returned) = Store::start(dir.path(), "boot", StoreLimits::default()).expect("start");
    store
        .put(dns(Timestamp::now(), Owner::default(), "secret.test"))
        .unwrap_or_else(|_| panic!("the queue is full"));
    returned.recv_blocking().expect("it is returned");
    let pods = runtime.block_on(Pods::start(support::no_runtime())).expect("the pods");
    let (live, _) = tokio::sync::broadcast::channel(1);
    let sources = Sources {
        pods,
        store: Some(store.reader()),
        live,
        health: Arc::new(Health::default()),
        metrics_page: Arc::default(),
    };
    let socket = dir.path().join("agent.sock");
    let listening = api::listen(&socket, sources).expect("listen");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("a folder for all");
    for name in ["agent.sock", "store.db", "store.db-wal", "store.db-shm"] {
        let mode = std::fs::metadata(dir.path().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let (got, error) = as_nobody(&socket);
    assert!(got.is_empty() && error.contains("Permission denied"), "{got} {error}");
    // Even if its mode allows everyone: the agent asks the kernel for the peer's user.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).expect("open it");
    let (got, error) = as_nobody(&socket);
    assert!(got.starts_with("HTTP/1.1 403") && !got.contains("secret"), "{got} {error}");
    drop(listening);
}
