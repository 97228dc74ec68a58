//! A place for resolvers and their clients: namespaces and a resolv.conf of its own, and the servers in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::query;

/// A second of timeout and a second of hold come to each lookup, and clients wait three seconds of their own.
pub const SOON: Duration = Duration::from_secs(90);

/// A thread in network and mount namespaces of its own, with a resolv.conf of its own.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// To be called in a thread that is the place's alone.
    fn enter() -> Place {
        let dir = tempfile::tempdir().expect("a folder");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces of our own (root)");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("keep mounts to ourselves");
        for (file, text) in [("resolv.conf", ""), ("nsswitch.conf", "hosts: files dns\n")] {
            let ours = dir.path().join(file);
            fs::write(&ours, text).expect("write");
            let theirs = fs::canonicalize(Path::new("/etc").join(file))
                .unwrap_or_else(|error| panic!("/etc/{file} is needed to be covered: {error}"));
            mount(Some(&ours), &theirs, none, MsFlags::MS_BIND, none).expect("cover it");
        }
        ip("link set lo up");
        Place { dir }
    }

    pub fn resolv_conf(&self, text: &str) {
        // Written in place: another file would not be the one that is mounted.
        fs::write(self.dir.path().join("resolv.conf"), text).expect("write resolv.conf");
    }

    /// A file of the place's own; gone with it.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("write");
        path
    }
}

/// Runs `work` on a thread of its own in a place of its own.
pub fn in_place<T: Send + 'static>(work: impl FnOnce(&Place) -> T + Send + 'static) -> T {
    std::thread::spawn(move || work(&Place::enter()))
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "`ip {arguments}` failed: apt-get install iproute2");
}

/// A server under way, ended when it is dropped.
pub struct Server {
    child: Child,
}

impl Server {
    /// Ours, which misbehaves on demand, at 127.0.0.1.
    pub fn ours(victims: &Path) -> Server {
        let mut child = Command::new(victims.join("resolver"))
            .arg("127.0.0.1:53")
            .stdout(Stdio::piped())
            .spawn()
            .expect("start our resolver");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let first = lines.next().expect("a line").expect("readable");
        assert!(first.starts_with("resolver: "), "{first}");
        // Its log is read to the end, so that it never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Server { child }
    }

    /// BIND at `address`: the zone `example.com` is its own, `broken.test` it cannot load (SERVFAIL), and whatever else
    /// it refuses.
    pub fn bind(place: &Place, address: &str) -> Server {
        let folder = place.dir.path().display();
        place.file("example.com.zone", ZONE);
        let config = format!(
            "options {{ directory \"{folder}\"; listen-on {{ {address}; }}; listen-on-v6 {{ none; }}; recursion no;
               pid-file none; session-keyfile none; dnssec-validation no; }};
             controls {{ }};
             zone \"example.com\" {{ type primary; file \"example.com.zone\"; }};
             zone \"broken.test\" {{ type primary; file \"not-there.zone\"; }};\n"
        );
        let config = place.file("named.conf", &config);
        // It listens at addresses that an interface has, and to lo all of 127.0.0.0/8 is the same one.
        ip(&format!("address add {address}/8 dev lo"));
        let mut command = unpacked_command("usr/sbin/named");
        command.args(["-g", "-n", "1", "-c"]).arg(config);
        Server::real(place, command, "named", address)
    }

    /// dnsmasq at `address`: `example.com` is its own but for `forwarded.example.com`, which it asks `upstream` for, as it
    /// does for `broken.test`; whatever else it refuses.
    pub fn dnsmasq(place: &Place, address: &str, upstream: &str) -> Server {
        let mut hosts = "192.0.2.1 fine.example.com\n".to_owned();
        (1..=MANY).for_each(|n| hosts += &format!("10.1.0.{n} truncated.example.com\n"));
        let hosts = place.file("dnsmasq.hosts", &hosts);
        let mut command = Command::new("/usr/sbin/dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
            "--log-facility=-",
        ]);
        command.args(["--bind-interfaces", "--no-hosts", "--no-resolv", "--local=/example.com/"]);
        command.arg(format!("--listen-address={address}")).arg(format!("--addn-hosts={}", hosts.display()));
        command.arg("--txt-record=nodata.example.com,nothing else");
        command.arg(format!("--server=/forwarded.example.com/broken.test/{upstream}"));
        Server::real(place, command, "dnsmasq", address)
    }

    /// Waits until it answers.
    fn real(place: &Place, mut command: Command, name: &str, address: &str) -> Server {
        let log = place.dir.path().join(format!("{name}.log"));
        let to = || File::create(&log).expect("a log");
        let (out, err) = (to(), to());
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("{}: {error}; run `cargo xtask setup test`", command.get_program().display())
        });
        let mut server = Server { child };
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let to: SocketAddr = SocketAddr::new(address.parse().expect("an address"), 53);
        let end = Instant::now() + SOON;
        loop {
            let _ = socket.send_to(&query(1, "fine.example.com", 1), to);
            let mut answer = [0; 1500];
            // NOERROR.
            if socket.recv(&mut answer).is_ok() && answer[3] & 15 == 0 {
                return server;
            }
            let ended = server.child.try_wait().expect("wait").is_some();
            if ended || Instant::now() > end {
                panic!("{name} does not answer: {}", fs::read_to_string(&log).unwrap_or_default());
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// More addresses than 1232 bytes hold, which is what the clients with the largest buffers take by UDP.
const MANY: u8 = 90;
const ZONE: &str = "$TTL 60
@ SOA ns hostmaster 1 60 60 60 60
@ NS ns
ns A 192.0.2.53
fine A 192.0.2.1
forwarded A 192.0.2.2
nodata TXT \"nothing else\"
$GENERATE 1-90 truncated A 10.1.0.$
";

/// A command for a program of [`unpacked`], with the libraries that were unpacked along with it: the system's may be of
/// another version. In Debian 12, some packages still have /lib.
fn unpacked_command(program: &str) -> Command {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    let libraries = libraries.map(|folder| packages().join(folder).display().to_string());
    let mut command = Command::new(unpacked(program));
    command.env("LD_LIBRARY_PATH", libraries.join(":"));
    command
}

/// A program of a Debian package that `cargo xtask setup test` unpacks without installing it, because installing it would
/// start a service.
pub fn unpacked(program: &str) -> PathBuf {
    let path = packages().join(program);
    assert!(path.is_file(), "{} is missing: run `cargo xtask setup test`", path.display());
    path
}

/// The folder that `cargo xtask setup test` unpacks packages into.
fn packages() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    cache.unwrap_or_else(home).join("podopsy/packages")
}
