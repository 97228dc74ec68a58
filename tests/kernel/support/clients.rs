//! Real clients: each takes a name, looks it up by its own resolver, and exits.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::dns_sandbox::unpacked;

/// Debian's own: an earlier one in PATH may be a wrapper that starts another process.
pub const PYTHON: &str = "/usr/bin/python3";

const MUSL: &str = r#"
#include <netdb.h>
int main(int c, char **v) {
    struct addrinfo *a, h = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    return getaddrinfo(v[1], "80", &h, &a) != 0;
}"#;

const GO: &str = r#"
package main
import ("context"; "net"; "os")
func main() {
    r := net.Resolver{PreferGo: true}
    if _, err := r.LookupHost(context.Background(), os.Args[1]); err != nil { os.Exit(1) }
}"#;

const C_ARES: &str = r#"
#include <ares.h>
#include <netdb.h>
#include <sys/select.h>
static int status = -1;
static void done(void *of, int result, int timeouts, struct ares_addrinfo *found) { status = result; }
int main(int c, char **v) {
    ares_channel channel;
    struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC};
    ares_library_init(ARES_LIB_INIT_ALL);
    /* One attempt, like the other clients: c-ares does not read this from resolv.conf. */
    struct ares_options options = {.timeout = 3000, .tries = 1};
    if (ares_init_options(&channel, &options, ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES)) return 2;
    ares_getaddrinfo(channel, v[1], "80", &hints, done, 0);
    for (;;) {
        fd_set in, out;
        struct timeval wait;
        FD_ZERO(&in);
        FD_ZERO(&out);
        int count = ares_fds(channel, &in, &out);
        if (!count) return status != 0;
        select(count, &in, &out, 0, ares_timeout(channel, 0, &wait));
        ares_process(channel, &in, &out);
    }
}"#;

const PYTHON_PROGRAM: &str = "import socket, sys; socket.getaddrinfo(sys.argv[1], 80)";

/// A program and its arguments; the name is appended.
#[derive(Clone)]
pub struct Client {
    pub name: &'static str,
    command: Vec<String>,
}

impl Client {
    /// Starts the client in the memory cgroup of a container, as a process that is executed in it.
    pub fn start(&self, name: &str, cgroup: &Path) -> Child {
        let mut child = Command::new("/bin/sh");
        child
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(cgroup)
            .args(&self.command)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        child
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask setup test`", self.command[0]))
    }
}

/// All clients; those in C and Go are compiled into `dir`.
pub fn all(dir: &Path) -> Vec<Client> {
    let [musl, go, c_ares] =
        [("musl", "c", MUSL), ("go", "go", GO), ("c-ares", "c", C_ARES)].map(|(name, ending, text)| {
            let (source, program) = (dir.join(format!("{name}.{ending}")), dir.join(name));
            std::fs::write(&source, text).expect("write a client's source");
            (source, program)
        });
    // In parallel: Go's standard library takes long.
    let built = [
        Command::new("musl-gcc").args(["-static", "-o"]).arg(&musl.1).arg(&musl.0).spawn(),
        Command::new("gcc").arg("-o").arg(&c_ares.1).arg(&c_ares.0).arg("-lcares").spawn(),
        Command::new("go")
            .args(["build", "-o"])
            .args([&go.1, &go.0])
            .env("CGO_ENABLED", "0")
            // Kept between runs: Go compiles its standard library for half a minute.
            .env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/go-cache"))
            .env("GO111MODULE", "off")
            .spawn(),
    ];
    for (built, what) in built.into_iter().zip(["musl-tools", "gcc libc-ares-dev", "golang-go"]) {
        let status = built.and_then(|mut child| child.wait());
        assert!(status.is_ok_and(|status| status.success()), "apt-get install {what}");
    }
    let program = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let client = |name, command: &[&str]| Client {
        name,
        command: command.iter().map(|&part| part.to_owned()).collect(),
    };
    vec![
        client("glibc", &["getent", "ahosts"]),
        client("python", &[PYTHON, "-c", PYTHON_PROGRAM]),
        client("musl", &[&program(&musl.1)]),
        client("busybox", &[&program(&unpacked("bin/busybox")), "nslookup"]),
        client("go", &[&program(&go.1)]),
        client("c-ares", &[&program(&c_ares.1)]),
        client("dig", &["dig", "+tries=1", "+time=3"]),
    ]
}
