//! A DNS server that misbehaves on demand, over UDP and TCP.
//!
//! ```text
//! resolver ADDRESS:PORT [--mode MODE] [--silent-after TIME] [--ipv6] [--quiet] [--control]
//! ```
//!
//! Modes: `answer`, `nxdomain`, `servfail`, `refused`, `formerr`, `nodata`, `truncated` (TC over UDP, whole and
//! in two segments over TCP), `silent`, `late-MS`, `malformed-loop`, `malformed-short`, `malformed-long`,
//! `malformed-question`.
//!
//! In `answer` mode, a name's first label may select another mode: `servfail.podopsy.test`, `late-1500.shop.test`;
//! `nxdomain-7.…` is `nxdomain` under a distinct name. Under `cluster.local`, only
//! `SERVICE.NAMESPACE.svc.cluster.local` of the namespaces below exists, so that search domains cause as many queries
//! as in a real cluster. AAAA gets NODATA (an IPv4 cluster) unless `--ipv6`.
//!
//! SIGUSR1 toggles between silence and the mode. With `--control`, each line of standard input sets a mode
//! (acknowledged by `mode MODE` on standard output), and the end of the input ends the server, so that it ends with the
//! process that started it. Each query is a line on standard output unless `--quiet`.

use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podopsy_victims::args::{Args, time};
use podopsy_victims::term::exit_on_sigterm;
use podopsy_victims::wire::{A, AAAA, Code, Defect, Question, malformed, question, reply};

const USAGE: &str =
    "resolver ADDRESS:PORT [--mode MODE] [--silent-after TIME] [--ipv6] [--quiet] [--control]";
const NAMESPACES: [&str; 6] = ["default", "kube-system", "finance", "shop", "podopsy", "monitoring"];

/// Toggled by SIGUSR1. Atomic, because a signal handler may do little else.
static SILENT: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Answer,
    Fail(Code),
    NoData,
    Truncated,
    Silent,
    Late(Duration),
    Malformed(Defect),
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mode, rest) = text.split_once('-').unwrap_or((text, ""));
        Ok(match (mode, rest) {
            ("answer", _) => Self::Answer,
            ("nxdomain", _) => Self::Fail(Code::NxDomain),
            ("servfail", _) => Self::Fail(Code::ServFail),
            ("refused", _) => Self::Fail(Code::Refused),
            ("formerr", _) => Self::Fail(Code::FormErr),
            ("nodata", _) => Self::NoData,
            ("truncated", _) => Self::Truncated,
            ("silent", _) => Self::Silent,
            ("late", ms) => Self::Late(Duration::from_millis(ms.parse().unwrap_or(2_000))),
            ("malformed", "short") => Self::Malformed(Defect::Short),
            ("malformed", "long") => Self::Malformed(Defect::Long),
            ("malformed", "question") => Self::Malformed(Defect::Question),
            ("malformed", _) => Self::Malformed(Defect::Loop),
            _ => return Err(format!("unknown mode {text:?}")),
        })
    }
}

/// The state that all threads share.
struct Server {
    mode: Mutex<Mode>,
    ipv6: bool,
    quiet: bool,
}

fn main() {
    exit_on_sigterm();
    toggle_at_sigusr1();
    let mut args = Args::new(USAGE);
    let mode = args.value("--mode", |text| text.parse().ok()).unwrap_or(Mode::Answer);
    let silent_after = args.value("--silent-after", time);
    let control = args.switch("--control");
    let server = Arc::new(Server {
        mode: Mutex::new(mode),
        ipv6: args.switch("--ipv6"),
        quiet: args.switch("--quiet"),
    });
    let positional = args.positional();
    let address: SocketAddr = positional.first().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        eprintln!("{USAGE}");
        std::process::exit(2);
    });
    let fail = |error| -> ! {
        eprintln!("{address}: {error}");
        std::process::exit(1);
    };
    let udp = UdpSocket::bind(address).unwrap_or_else(|error| fail(error));
    let tcp = TcpListener::bind(address).unwrap_or_else(|error| fail(error));
    println!("resolver: {address}");

    if let Some(after) = silent_after {
        std::thread::spawn(move || {
            std::thread::sleep(after);
            SILENT.store(true, Ordering::Relaxed);
            println!("mode silent");
        });
    }
    if control {
        let server = server.clone();
        std::thread::spawn(move || read_modes(&server));
    }
    let tcp_server = server.clone();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let server = tcp_server.clone();
            std::thread::spawn(move || serve_tcp(&server, stream));
        }
    });
    serve_udp(&server, &udp);
}

/// Installs the handler that toggles the silence.
fn toggle_at_sigusr1() {
    extern "C" fn toggle(_signal: libc::c_int) {
        SILENT.fetch_xor(true, Ordering::Relaxed);
    }
    // SAFETY: the handler lives forever and only touches an atomic.
    unsafe { libc::signal(libc::SIGUSR1, toggle as extern "C" fn(libc::c_int) as libc::sighandler_t) };
}

/// Sets the mode of each line of standard input, and ends the server at its end.
fn read_modes(server: &Server) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.trim().parse() {
            Ok(mode) => {
                *server.mode.lock().expect("no thread panics while it holds the mode") = mode;
                SILENT.store(false, Ordering::Relaxed);
                println!("mode {}", line.trim());
            }
            Err(error) => println!("error {error}"),
        }
    }
    std::process::exit(0);
}

fn serve_udp(server: &Server, socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    loop {
        // recv_from also returns the ICMP error of an earlier reply, which does not matter here.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let Some(question) = question(&buffer[..length]) else { continue };
        let mode = server.decide(&question, "udp", client);
        let Some(packet) = server.packet(&question, mode, mode == Mode::Truncated) else { continue };
        match (mode, socket.try_clone()) {
            (Mode::Late(delay), Ok(socket)) => {
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    let _ = socket.send_to(&packet, client);
                });
            }
            // The client may have gone: not an error of the server.
            _ => drop(socket.send_to(&packet, client)),
        }
    }
}

/// One connection, any number of queries.
fn serve_tcp(server: &Server, mut stream: TcpStream) {
    let Ok(client) = stream.peer_addr() else { return };
    let _ = stream.set_nodelay(true);
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut packet).is_err() {
            return;
        }
        let Some(question) = question(&packet) else { return };
        let mode = server.decide(&question, "tcp", client);
        let Some(packet) = server.packet(&question, mode, false) else { continue };
        if let Mode::Late(delay) = mode {
            std::thread::sleep(delay);
        }
        // In two segments, cut inside the header: a reader must reassemble them.
        let mut whole = (packet.len() as u16).to_be_bytes().to_vec();
        whole.extend(packet);
        let (first, second) = whole.split_at(9.min(whole.len()));
        if stream.write_all(first).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
        if stream.write_all(second).is_err() {
            return;
        }
    }
}

impl Server {
    /// Decides how to treat this query, and prints it.
    fn decide(&self, question: &Question, transport: &str, client: SocketAddr) -> Mode {
        let set = *self.mode.lock().expect("no thread panics while it holds the mode");
        let mode = if SILENT.load(Ordering::Relaxed) {
            Mode::Silent
        } else if set != Mode::Answer {
            set
        } else if !exists(&question.name) {
            Mode::Fail(Code::NxDomain)
        } else {
            let first = question.name.split('.').next().unwrap_or_default();
            first.parse().unwrap_or(Mode::Answer)
        };
        if !self.quiet {
            println!("{transport} {client} {} {} {mode:?}", question.kind, question.name);
        }
        mode
    }

    /// The reply, if there is one.
    fn packet(&self, question: &Question, mode: Mode, truncated: bool) -> Option<Vec<u8>> {
        Some(match mode {
            Mode::Silent => return None,
            Mode::Fail(code) => reply(question, code, false, &[]),
            Mode::NoData => reply(question, Code::NoError, false, &[]),
            Mode::Malformed(defect) => malformed(question, defect),
            Mode::Truncated if truncated => reply(question, Code::NoError, true, &[]),
            Mode::Truncated => {
                // More than 512 bytes, the reason why it went over TCP.
                let many: Vec<_> = (0..40).flat_map(|n| self.address(question, n)).collect();
                reply(question, Code::NoError, false, &many)
            }
            Mode::Answer | Mode::Late(_) => {
                let address: Vec<_> = self.address(question, 0).into_iter().collect();
                reply(question, Code::NoError, false, &address)
            }
        })
    }

    /// The `n`th address of a name: in 10.96.0.0/16, where service addresses are, the same on every call.
    fn address(&self, question: &Question, n: u8) -> Option<Vec<u8>> {
        let sum = question.name.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        match question.kind {
            A => Some(vec![10, 96, sum, n.wrapping_add(1)]),
            AAAA if self.ipv6 => {
                Some(vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, sum, n.wrapping_add(1)])
            }
            _ => None,
        }
    }
}

/// Whether the name exists: outside `cluster.local` every name does, inside only services of known namespaces.
fn exists(name: &str) -> bool {
    let Some(inside) = name.strip_suffix(".cluster.local") else { return true };
    let labels: Vec<&str> = inside.split('.').collect();
    matches!(labels[..], [_, namespace, "svc"] if NAMESPACES.contains(&namespace))
}
