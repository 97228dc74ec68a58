//! Queries to a Service, whose address is rewritten on the way: the reported server is the address that the application
//! used, and its answer is recognised.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use crate::support;
use podopsy_model::{DnsTransaction, Event, Outcome};
use support::{Recording, in_own_network, query, respond, transactions};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;
const NXDOMAIN: u16 = 0x8183;

fn of<'a>(events: &'a [Event], name: &str) -> Vec<&'a DnsTransaction> {
    transactions(events, name).into_iter().map(|(_, dns)| dns).collect()
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let stderr = output
        .as_ref()
        .map_or_else(ToString::to_string, |output| String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(
        output.is_ok_and(|output| output.status.success()),
        "{program} {arguments}: {stderr}; apt-get install iptables iproute2"
    );
}

/// A Service, and the address of the only pod behind it.
struct Service {
    address: &'static str,
    pod: &'static str,
}

impl Service {
    fn ip(&self) -> IpAddr {
        self.address.parse().expect("an address")
    }

    /// What kube-proxy does for a process in the node's own network.
    fn make(&self) {
        let v6 = self.ip().is_ipv6();
        let (tables, host, to) = match v6 {
            true => ("ip6tables", "128", format!("[{}]:53", self.pod)),
            false => ("iptables", "32", format!("{}:53", self.pod)),
        };
        run("ip", &format!("address add {}/{host} dev lo{}", self.pod, if v6 { " nodad" } else { "" }));
        run("ip", &format!("route add {}/{host} dev lo", self.address));
        for protocol in ["udp", "tcp"] {
            let rule = format!("-d {} --dport 53 -j DNAT --to-destination {to}", self.address);
            run(tables, &format!("-w -t nat -A OUTPUT -p {protocol} {rule}"));
        }
    }

    /// Asks the Service for each name by the one socket, which is connected to it or not; the pod answers.
    fn ask(&self, client: &UdpSocket, names: &[&str]) {
        let server =
            UdpSocket::bind(SocketAddr::new(self.pod.parse().expect("an address"), 53)).expect("bind");
        for end in [&server, client] {
            end.set_read_timeout(Some(SOON)).expect("a timeout");
        }
        for (id, name) in (7..).zip(names) {
            let asked = query(id, name, A);
            match client.peer_addr() {
                Ok(_) => client.send(&asked),
                Err(_) => client.send_to(&asked, SocketAddr::new(self.ip(), 53)),
            }
            .expect("ask");
            let mut buffer = [0; 1500];
            let (len, from) = server.recv_from(&mut buffer).expect("the query");
            server.send_to(&respond(&buffer[..len], NXDOMAIN, 1, 0), from).expect("answer");
            client.recv(&mut buffer).expect("the answer");
        }
    }
}

const V4: Service = Service { address: "10.96.0.10", pod: "10.1.0.1" };
const OTHER: Service = Service { address: "10.96.0.11", pod: "10.1.0.2" };
const V6: Service = Service { address: "fd00:96::a", pod: "fd00:1::1" };

fn unconnected(service: &Service) -> UdpSocket {
    UdpSocket::bind(if service.ip().is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).expect("a client")
}

fn connected(service: &Service) -> UdpSocket {
    let client = unconnected(service);
    client.connect(SocketAddr::new(service.ip(), 53)).expect("connect");
    client
}

/// Each of the names has one outcome, of the server that the application used, and no timeout follows.
fn each_is_answered(mut recording: Recording, names: &[(&str, IpAddr)]) {
    let is_reported = |seen: &[Event]| names.iter().all(|(name, _)| !of(seen, name).is_empty());
    recording.until("an outcome of each", SOON, is_reported);
    // Longer than the timeout.
    recording.receive_for(Duration::from_millis(1500));
    for &(name, server) in names {
        let found: Vec<_> = of(&recording.seen, name).iter().map(|dns| (dns.outcome, dns.server)).collect();
        assert_eq!(found, [(Outcome::Nxdomain, SocketAddr::new(server, 53))], "{name}");
    }
}

#[test]
fn a_service_address_that_the_node_rewrites_is_the_server_that_was_asked() {
    let recording = Recording::host();
    in_own_network(|| {
        V4.make();
        V6.make();
        V4.ask(&connected(&V4), &["connected.test"]);
        // As musl, dnsmasq and many libraries do; twice by the same socket.
        V4.ask(&unconnected(&V4), &["unconnected.test", "once-more.test"]);
        V6.ask(&connected(&V6), &["connected-six.test"]);
        V6.ask(&unconnected(&V6), &["unconnected-six.test"]);
        // An IPv6 socket that asks an IPv4 address.
        let both = UdpSocket::bind("[::]:0").expect("a client");
        let mapped = SocketAddr::new("::ffff:10.96.0.10".parse().expect("an address"), 53);
        let server = UdpSocket::bind("10.1.0.1:53").expect("bind");
        both.send_to(&query(9, "mapped.test", A), mapped).expect("ask");
        let mut buffer = [0; 1500];
        let (len, from) = server.recv_from(&mut buffer).expect("the query");
        server.send_to(&respond(&buffer[..len], NXDOMAIN, 1, 0), from).expect("answer");
        both.recv(&mut buffer).expect("the answer");
    });
    each_is_answered(
        recording,
        &[
            ("connected.test", V4.ip()),
            ("unconnected.test", V4.ip()),
            ("once-more.test", V4.ip()),
            ("connected-six.test", V6.ip()),
            ("unconnected-six.test", V6.ip()),
            ("mapped.test", V4.ip()),
        ],
    );
}

#[test]
fn one_socket_asks_two_services_at_once_and_threads_share_it() {
    let recording = Recording::host();
    let names = ["first.test", "second.test"];
    in_own_network(move || {
        let services = [V4, OTHER];
        services.iter().for_each(Service::make);
        let servers = services.each_ref().map(|service| UdpSocket::bind((service.pod, 53)).expect("bind"));
        let client = UdpSocket::bind("0.0.0.0:0").expect("a client");
        // The same id for both, as musl does, each in its own thread.
        std::thread::scope(|scope| {
            for (service, name) in services.iter().zip(names) {
                let client = &client;
                scope.spawn(move || client.send_to(&query(7, name, A), (service.address, 53)).expect("ask"));
            }
        });
        let mut buffer = [0; 1500];
        for server in &servers {
            let (len, from) = server.recv_from(&mut buffer).expect("the query");
            server.send_to(&respond(&buffer[..len], NXDOMAIN, 1, 0), from).expect("answer");
        }
        for _ in &servers {
            client.recv(&mut buffer).expect("an answer");
        }
    });
    each_is_answered(recording, &[(names[0], V4.ip()), (names[1], OTHER.ip())]);
}

#[test]
fn a_query_that_is_sent_again_is_the_same_one_after_another_was_answered() {
    /// Its address begins with the same number as that of `V4` (`dns_sendmsg::numbered` in the kernel side).
    const LIKE_V4: Service = Service { address: "10.96.0.14", pod: "10.1.0.6" };
    let recording = Recording::host();
    let names = ["answered-first.test", "sent-again.test"];
    in_own_network(move || {
        let services = [V4, LIKE_V4];
        services.iter().for_each(Service::make);
        let servers = services.each_ref().map(|service| UdpSocket::bind((service.pod, 53)).expect("bind"));
        let client = UdpSocket::bind("0.0.0.0:0").expect("a client");
        let ask =
            |at: usize| client.send_to(&query(7, names[at], A), (services[at].address, 53)).expect("ask");
        let answer = |at: usize| {
            let mut buffer = [0; 1500];
            let (len, from) = servers[at].recv_from(&mut buffer).expect("the query");
            servers[at].send_to(&respond(&buffer[..len], NXDOMAIN, 1, 0), from).expect("answer");
            client.recv(&mut buffer).expect("the answer");
        };
        ask(0);
        ask(1);
        answer(0);
        ask(1);
        answer(1);
    });
    each_is_answered(recording, &[(names[0], V4.ip()), (names[1], LIKE_V4.ip())]);
}

#[test]
fn an_answer_that_is_not_rewritten_back_is_recognised_too() {
    let recording = Recording::host();
    in_own_network(|| {
        OTHER.make();
        // As by a load balancer that rewrites in the socket: at podopsy's hook, the answer comes from the pod.
        run("iptables", "-w -t raw -A OUTPUT -p udp -s 10.1.0.2 --sport 53 -j CT --notrack");
        OTHER.ask(&unconnected(&OTHER), &["not-back.test", "not-back-again.test"]);
    });
    each_is_answered(recording, &[("not-back.test", OTHER.ip()), ("not-back-again.test", OTHER.ip())]);
}

#[test]
fn tcp_to_a_service_is_answered_by_it() {
    let recording = Recording::host();
    in_own_network(|| {
        V4.make();
        let listener = TcpListener::bind("10.1.0.1:53").expect("bind");
        let mut client = TcpStream::connect((V4.address, 53)).expect("connect");
        let asked = query(8, "tcp.test", A);
        client.write_all(&[&(asked.len() as u16).to_be_bytes()[..], &asked].concat()).expect("ask");
        let (mut stream, _) = listener.accept().expect("accept");
        let mut bytes = vec![0; asked.len() + 2];
        stream.read_exact(&mut bytes).expect("the query");
        let answer = respond(&asked, NXDOMAIN, 1, 0);
        stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).expect("answer");
        client.read_exact(&mut bytes).expect("the answer");
    });
    each_is_answered(recording, &[("tcp.test", V4.ip())]);
}
