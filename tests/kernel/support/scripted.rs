//! DNS servers in the test's own process, and situations that real resolvers meet with them: several servers, aliases, TCP
//! that fails, answers from elsewhere.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{Backlog, listen};
use podopsy_model::Outcome::{self, *};
use podopsy_model::lookup::LookupResult;

use super::dns_sandbox::SOON;
use super::respond;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
/// Where [`Udp::FromElsewhere`] answers from.
pub const ELSEWHERE: &str = "127.0.0.5";

/// How a server answers by UDP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Udp {
    Fine,
    /// No AAAA records.
    Ipv4Only,
    Silent,
    /// An alias with nothing behind it.
    Dangling,
    Truncated,
    FromElsewhere,
    /// BADVERS, whose upper bits are in the OPT record.
    BadVersion,
    /// The question in lower case, however it was written.
    LowerCase,
}

/// How a server answers by TCP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    Refused,
    Reset,
    /// A SYN is not answered.
    Silent,
}

/// The results that are correct for a client, and the outcomes of the queries that are reported as failures.
pub type Expected = (&'static str, &'static [LookupResult], &'static [Outcome]);

/// Servers, and what each client makes of them.
pub struct Situation {
    pub name: &'static str,
    pub servers: &'static [(&'static str, Udp)],
    pub tcp: Tcp,
    /// The resolver's timeout in seconds, and further options.
    pub options: &'static str,
    /// The client is killed while it waits.
    pub is_given_up: bool,
    pub clients: &'static [Expected],
}

const PLAIN: Situation = Situation {
    name: "",
    servers: &[("127.0.0.1", Udp::Fine)],
    tcp: Tcp::Refused,
    options: "timeout:3",
    is_given_up: false,
    clients: &[],
};

/// musl before 1.2.4 knows no TCP.
pub const SITUATIONS: [Situation; 11] = [
    Situation {
        name: "first-answers.test",
        servers: &[("127.0.0.1", Udp::Fine), ("127.0.0.2", Udp::Silent)],
        clients: &[
            ("glibc", &[LookupResult::Answered], &[]),
            ("musl", &[LookupResult::Answered], &[]),
            ("go", &[LookupResult::Answered], &[]),
        ],
        ..PLAIN
    },
    Situation {
        name: "first-silent.test",
        servers: &[("127.0.0.1", Udp::Silent), ("127.0.0.2", Udp::Fine)],
        options: "timeout:1",
        clients: &[
            ("glibc", &[LookupResult::Answered], &[Timeout]),
            ("musl", &[LookupResult::Answered], &[]),
            ("go", &[LookupResult::Answered], &[Timeout]),
        ],
        ..PLAIN
    },
    Situation {
        name: "ipv4-only.test",
        servers: &[("127.0.0.1", Udp::Ipv4Only)],
        clients: &[
            ("glibc", &[LookupResult::Answered], &[]),
            ("musl", &[LookupResult::Answered], &[]),
            ("go", &[LookupResult::Answered], &[]),
        ],
        ..PLAIN
    },
    Situation {
        name: "dangling.test",
        servers: &[("127.0.0.1", Udp::Dangling)],
        clients: &[
            ("glibc", &[LookupResult::Nodata], &[Nodata]),
            ("musl", &[LookupResult::Nodata], &[Nodata]),
            ("go", &[LookupResult::Nodata], &[Nodata]),
        ],
        ..PLAIN
    },
    Situation {
        name: "tcp-refused.test",
        servers: &[("127.0.0.1", Udp::Truncated)],
        clients: &[
            ("glibc", &[LookupResult::Unreachable], &[Truncated, Unreachable]),
            ("musl", &[LookupResult::Truncated], &[Truncated]),
            ("go", &[LookupResult::Unreachable], &[Truncated, Unreachable]),
        ],
        ..PLAIN
    },
    Situation {
        name: "tcp-reset.test",
        servers: &[("127.0.0.1", Udp::Truncated)],
        tcp: Tcp::Reset,
        clients: &[
            ("glibc", &[LookupResult::Unreachable], &[Truncated, Unreachable]),
            ("go", &[LookupResult::Unreachable], &[Truncated, Unreachable]),
        ],
        ..PLAIN
    },
    // glibc waits two minutes for a connection, whatever its timeout is.
    Situation {
        name: "tcp-silent.test",
        servers: &[("127.0.0.1", Udp::Truncated)],
        tcp: Tcp::Silent,
        options: "timeout:1",
        clients: &[("go", &[LookupResult::Timeout], &[Truncated, Timeout])],
        ..PLAIN
    },
    Situation {
        name: "from-elsewhere.test",
        servers: &[("127.0.0.1", Udp::FromElsewhere)],
        options: "timeout:1",
        clients: &[
            ("glibc", &[LookupResult::Timeout], &[Timeout]),
            ("musl", &[LookupResult::Timeout], &[Timeout]),
            ("go", &[LookupResult::Timeout], &[Timeout]),
        ],
        ..PLAIN
    },
    Situation {
        name: "bad-version.test",
        servers: &[("127.0.0.1", Udp::BadVersion)],
        options: "timeout:3 edns0",
        clients: &[("glibc", &[LookupResult::Other], &[Other]), ("go", &[LookupResult::Other], &[Other])],
        ..PLAIN
    },
    Situation {
        name: "Mixed-Case.test",
        servers: &[("127.0.0.1", Udp::LowerCase)],
        clients: &[
            ("glibc", &[LookupResult::Answered], &[]),
            ("musl", &[LookupResult::Answered], &[]),
            ("go", &[LookupResult::Answered], &[]),
        ],
        ..PLAIN
    },
    Situation {
        name: "given-up.test",
        servers: &[("127.0.0.1", Udp::Silent)],
        is_given_up: true,
        clients: &[
            ("glibc", &[LookupResult::Abandoned], &[Abandoned]),
            ("musl", &[LookupResult::Abandoned], &[Abandoned]),
            ("go", &[LookupResult::Abandoned], &[Abandoned]),
        ],
        ..PLAIN
    },
];

/// A server of the calling thread's network namespace; it ends when this is dropped.
pub struct ScriptedServer {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    /// A queue of connections that is full.
    _full: Option<(TcpListener, TcpStream)>,
}

impl ScriptedServer {
    pub fn start(address: &str, udp: Udp, tcp: Tcp) -> ScriptedServer {
        let address = SocketAddr::new(address.parse().expect("an address"), 53);
        let socket = UdpSocket::bind(address).expect("bind port 53 in our own namespace");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count) = (stop.clone(), asked.clone());
        let mut threads = vec![std::thread::spawn(move || serve_udp(&socket, udp, &stopped, &count))];
        let mut full = None;
        match tcp {
            Tcp::Refused => {}
            Tcp::Reset => {
                let (listener, stopped) = (TcpListener::bind(address).expect("listen"), stop.clone());
                threads.push(std::thread::spawn(move || reset_connections(&listener, &stopped)));
            }
            Tcp::Silent => {
                let listener = TcpListener::bind(address).expect("listen");
                listen(&listener, Backlog::new(0).expect("a length")).expect("listen with a shorter queue");
                full = Some((listener, TcpStream::connect(address).expect("the one that fits")));
            }
        }
        ScriptedServer { stop, asked, threads, _full: full }
    }

    /// The number of queries by UDP so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    pub fn wait_until_asked(&self, queries: usize) {
        let end = Instant::now() + SOON;
        while self.asked() < queries {
            assert!(Instant::now() < end, "{} queries", self.asked());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, behaviour: Udp, stop: &AtomicBool, asked: &AtomicUsize) {
    let elsewhere =
        (behaviour == Udp::FromElsewhere).then(|| UdpSocket::bind((ELSEWHERE, 53)).expect("bind port 53"));
    let mut buffer = [0; 1500];
    while !stop.load(Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        asked.fetch_add(1, Relaxed);
        if elsewhere.is_some() {
            // The kernel side reports one such answer in 10 ms.
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(answer) = answer(behaviour, &buffer[..length]) {
            // The client may have gone.
            let _ = elsewhere.as_ref().unwrap_or(socket).send_to(&answer, from);
        }
    }
}

/// Closes each connection while there is data that was not read, which resets it.
fn reset_connections(listener: &TcpListener, stop: &AtomicBool) {
    listener.set_nonblocking(true).expect("a listener that does not wait");
    while !stop.load(Relaxed) {
        match listener.accept() {
            Ok((mut connection, _)) => {
                let _ = connection.set_nonblocking(false);
                let _ = connection.set_read_timeout(Some(Duration::from_secs(5)));
                let _ = connection.read_exact(&mut [0; 2]);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn answer(behaviour: Udp, query: &[u8]) -> Option<Vec<u8>> {
    const FINE: u16 = 0x8180;
    const TRUNCATED: u16 = 0x8380;
    let (question, qtype) = question(query);
    let with = |flags, records: &[Vec<u8>]| {
        let mut answer = respond(&question, flags, 1, records.len() as u16);
        answer.extend(records.concat());
        answer
    };
    let address = match qtype {
        A => record(A, &[192, 0, 2, 1]),
        _ => record(AAAA, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    };
    Some(match behaviour {
        Udp::Silent => return None,
        Udp::Ipv4Only if qtype == AAAA => with(FINE, &[]),
        Udp::Fine | Udp::Ipv4Only | Udp::FromElsewhere => with(FINE, &[address]),
        Udp::Dangling => with(FINE, &[record(CNAME, b"\x04gone\x04test\0")]),
        Udp::Truncated => with(TRUNCATED, &[]),
        Udp::BadVersion => {
            let mut answer = with(FINE, &[]);
            answer[11] = 1;
            answer.extend([0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
            answer
        }
        Udp::LowerCase => {
            let mut answer = with(FINE, &[address]);
            let end = question.len() - 4;
            answer[12..end].make_ascii_lowercase();
            answer
        }
    })
}

/// The header and the question of a query, without its OPT record, and the type that it asks for.
fn question(query: &[u8]) -> (Vec<u8>, u16) {
    let mut at = 12;
    while query[at] != 0 {
        at += 1 + usize::from(query[at]);
    }
    let mut question = query[..at + 5].to_vec();
    question[6..12].fill(0);
    (question, u16::from_be_bytes([query[at + 1], query[at + 2]]))
}

/// A record whose owner is the question's name.
fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 30], &length, data].concat()
}
