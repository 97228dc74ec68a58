//! A sandbox for DNS servers and their clients: its own namespaces and resolv.conf, and the servers in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::query;

/// A lookup is reported after a second of timeout and a second more; clients wait up to three seconds themselves.
pub const SOON: Duration = Duration::from_secs(90);

/// A thread with its own network and mount namespaces, and its own resolv.conf.
pub struct DnsSandbox {
    dir: tempfile::TempDir,
}

impl DnsSandbox {
    /// Moves the calling thread, which must be used for nothing else, into new namespaces.
    fn enter() -> DnsSandbox {
        let dir = tempfile::tempdir().expect("a folder");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces of our own (root)");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make mounts private");
        for (file, text) in [("resolv.conf", ""), ("nsswitch.conf", "hosts: files dns\n")] {
            let ours = dir.path().join(file);
            fs::write(&ours, text).expect("write");
            let theirs = fs::canonicalize(Path::new("/etc").join(file))
                .unwrap_or_else(|error| panic!("/etc/{file} must exist, to be mounted over: {error}"));
            mount(Some(&ours), &theirs, none, MsFlags::MS_BIND, none).expect("mount over it");
        }
        ip("link set lo up");
        DnsSandbox { dir }
    }

    pub fn resolv_conf(&self, text: &str) {
        // Written in sandbox: a new file would not be the mounted one.
        fs::write(self.dir.path().join("resolv.conf"), text).expect("write resolv.conf");
    }

    /// Writes a file that is removed with the sandbox.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("write");
        path
    }
}

/// Runs `work` in a new thread in a new sandbox.
pub fn in_dns_sandbox<T: Send + 'static>(work: impl FnOnce(&DnsSandbox) -> T + Send + 'static) -> T {
    std::thread::spawn(move || work(&DnsSandbox::enter()))
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "`ip {arguments}` failed: apt-get install iproute2");
}

/// A running server, killed when this is dropped.
pub struct Server {
    child: Child,
}

impl Server {
    /// The victim `resolver`, which misbehaves on demand, at 127.0.0.1.
    pub fn ours(victims: &Path) -> Server {
        let mut child = Command::new(victims.join("resolver"))
            .arg("127.0.0.1:53")
            .stdout(Stdio::piped())
            .spawn()
            .expect("start our resolver");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let first = lines.next().expect("a line").expect("readable");
        assert!(first.starts_with("resolver: "), "{first}");
        // Its log is drained, so that it never blocks.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Server { child }
    }

    /// BIND at `address`: it serves the zone `example.com`, cannot load `broken.test` (SERVFAIL), and refuses the rest.
    pub fn bind(sandbox: &DnsSandbox, address: &str) -> Server {
        let folder = sandbox.dir.path().display();
        sandbox.file("example.com.zone", ZONE);
        let config = format!(
            "options {{ directory \"{folder}\"; listen-on {{ {address}; }}; listen-on-v6 {{ none; }}; recursion no;
               pid-file none; session-keyfile none; dnssec-validation no; }};
             controls {{ }};
             zone \"example.com\" {{ type primary; file \"example.com.zone\"; }};
             zone \"broken.test\" {{ type primary; file \"not-there.zone\"; }};\n"
        );
        let config = sandbox.file("named.conf", &config);
        // BIND listens only on addresses that an interface has. lo has one for all of 127.0.0.0/8.
        ip(&format!("address add {address}/8 dev lo"));
        let mut command = unpacked_command("usr/sbin/named");
        command.args(["-g", "-n", "1", "-c"]).arg(config);
        Server::start(sandbox, command, "named", address)
    }

    /// dnsmasq at `address`: it serves `example.com`, forwards `forwarded.example.com` and `broken.test` to `upstream`,
    /// and refuses the rest.
    pub fn dnsmasq(sandbox: &DnsSandbox, address: &str, upstream: &str) -> Server {
        let mut hosts = "192.0.2.1 fine.example.com\n".to_owned();
        (1..=MANY).for_each(|n| hosts += &format!("10.1.0.{n} truncated.example.com\n"));
        let hosts = sandbox.file("dnsmasq.hosts", &hosts);
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
        Server::start(sandbox, command, "dnsmasq", address)
    }

    /// Starts a server and waits until it answers.
    fn start(sandbox: &DnsSandbox, mut command: Command, name: &str, address: &str) -> Server {
        let log = sandbox.dir.path().join(format!("{name}.log"));
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

/// More addresses than fit into 1232 bytes, the largest UDP response that the clients accept.
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
pub fn packages() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    cache.unwrap_or_else(home).join("podopsy/packages")
}
