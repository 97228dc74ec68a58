//! The network of a pod, on one screen: what is conspicuous first.

use std::io::{self, Write};

use podopsy_net::{Network, Route, Socket, SocketState, Transport};

use super::table::{self, TextTable, field, prose};
use super::units::plural;
use crate::cmd::net::NetReport;
use crate::terminal::Terminal;

/// Connections that are listed; `-o json` has all.
const CONNECTIONS_MAX: usize = 50;

pub fn print(out: &mut impl Write, terminal: Terminal, report: &NetReport) -> io::Result<()> {
    match &report.pod {
        Some(pod) => field(out, terminal, "Pod", &format!("{}/{}", pod.namespace, pod.name))?,
        None => field(out, terminal, "Process", &report.pid.to_string())?,
    }
    if report.host_network {
        field(out, terminal, "Network", "the host's; sockets are those of its own processes")?;
    }
    if report.verdicts.is_empty() {
        field(out, terminal, "Verdicts", "nothing conspicuous")?;
    }
    for (index, verdict) in report.verdicts.iter().enumerate() {
        field(out, terminal, if index == 0 { "Verdicts" } else { "" }, &verdict.statement)?;
    }
    interfaces(out, terminal, &report.network)?;
    routes(out, terminal, &report.network.routes)?;
    resolv_conf(out, terminal, report)?;
    listeners(out, terminal, &report.network)?;
    connections(out, terminal, &report.network)
}

fn heading(out: &mut impl Write, terminal: Terminal, text: &str) -> io::Result<()> {
    writeln!(out)?;
    table::heading(out, terminal, text)
}

fn interfaces(out: &mut impl Write, terminal: Terminal, network: &Network) -> io::Result<()> {
    heading(out, terminal, "Addresses")?;
    let mut table = TextTable::new(&["INTERFACE", "STATE", "MTU", "ADDRESS", "MAC"]);
    for interface in &network.interfaces {
        let addresses =
            interface.addresses.iter().map(|address| format!("{}/{}", address.ip, address.prefix));
        table.row(vec![
            interface.name.clone(),
            if interface.is_up { "up" } else { "down" }.to_owned(),
            interface.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
            addresses.collect::<Vec<_>>().join(", "),
            interface.mac.clone(),
        ]);
    }
    table.print(out, terminal)
}

fn routes(out: &mut impl Write, terminal: Terminal, routes: &[Route]) -> io::Result<()> {
    heading(out, terminal, "Routes")?;
    if routes.is_empty() {
        return prose(out, terminal, "none: nothing outside of the pod can be reached");
    }
    let mut table = TextTable::new(&["DESTINATION", "GATEWAY", "INTERFACE", "SOURCE", "METRIC"]);
    for route in routes {
        let gateways = route.gateways.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        table.row(vec![
            route.destination.clone(),
            if route.kind == "unicast" { gateways } else { route.kind.to_owned() },
            route.interface.clone(),
            route.source.map(|source| source.to_string()).unwrap_or_default(),
            route.metric.map(|metric| metric.to_string()).unwrap_or_default(),
        ]);
    }
    table.print(out, terminal)
}

fn resolv_conf(out: &mut impl Write, terminal: Terminal, report: &NetReport) -> io::Result<()> {
    heading(out, terminal, "/etc/resolv.conf")?;
    if let Some(error) = report.resolv_conf.error {
        prose(out, terminal, &format!("not read: {error}"))?;
    }
    report.resolv_conf.lines.iter().try_for_each(|line| prose(out, terminal, line))
}

fn listeners(out: &mut impl Write, terminal: Terminal, network: &Network) -> io::Result<()> {
    heading(out, terminal, "Listeners")?;
    if !network.sockets.iter().any(Socket::is_listener) {
        return writeln!(out, "none");
    }
    let mut table = TextTable::new(&["PROTO", "LOCAL", "QUEUE", "PROCESS", "CONTAINER"]);
    for socket in network.sockets.iter().filter(|socket| socket.is_listener()) {
        let queue = match socket.transport {
            Transport::Tcp => format!("{} of {}", socket.receive_queue, socket.send_queue),
            Transport::Udp => format!("{} B", socket.receive_queue),
        };
        let transport = socket.transport.as_str().to_owned();
        table.row(vec![transport, socket.local.to_string(), queue, processes(socket), container(socket)]);
    }
    table.print(out, terminal)
}

fn connections(out: &mut impl Write, terminal: Terminal, network: &Network) -> io::Result<()> {
    heading(out, terminal, "Connections")?;
    let (waiting, open): (Vec<&Socket>, Vec<&Socket>) = network
        .sockets
        .iter()
        .filter(|socket| socket.remote.is_some())
        .partition(|socket| socket.state == SocketState::TimeWait);
    if open.is_empty() && waiting.is_empty() {
        return writeln!(out, "none");
    }
    let mut table =
        TextTable::new(&["PROTO", "STATE", "LOCAL", "REMOTE", "RECV-Q", "SEND-Q", "RETRANS", "PROCESS"]);
    for socket in open.iter().take(CONNECTIONS_MAX) {
        table.row(vec![
            socket.transport.as_str().to_owned(),
            socket.state.as_str().to_owned(),
            socket.local.to_string(),
            socket.remote.map(|remote| remote.to_string()).unwrap_or_default(),
            socket.receive_queue.to_string(),
            socket.send_queue.to_string(),
            socket.retransmissions.to_string(),
            processes(socket),
        ]);
    }
    table.print(out, terminal)?;
    let others = (open.len().saturating_sub(CONNECTIONS_MAX)) as u64 + network.sockets_omitted;
    if others > 0 {
        writeln!(out, "and {}: -o json", plural(others, "other"))?;
    }
    if !waiting.is_empty() {
        writeln!(out, "and {} in TIME-WAIT", waiting.len())?;
    }
    Ok(())
}

fn processes(socket: &Socket) -> String {
    let all = socket.processes.iter().map(|owner| format!("{}[{}]", owner.comm, owner.pid));
    all.collect::<Vec<_>>().join(", ")
}

fn container(socket: &Socket) -> String {
    let mut names: Vec<&str> =
        socket.processes.iter().filter_map(|owner| owner.container.as_deref()).collect();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use podopsy_net::{Address, Interface, SocketOwner, Verdict, VerdictKind};

    use super::*;
    use crate::cmd::net::ResolvConf;

    fn socket(state: SocketState, local: &str, remote: Option<&str>) -> Socket {
        Socket {
            transport: Transport::Tcp,
            state,
            local: local.parse().unwrap(),
            remote: remote.map(|remote| remote.parse().unwrap()),
            receive_queue: 0,
            send_queue: 128,
            timeouts: 0,
            retransmissions: 3,
            uid: 0,
            inode: 1,
            processes: vec![SocketOwner { pid: 7, comm: "api\\x1b".into(), container: Some("api".into()) }],
        }
    }

    fn report() -> NetReport {
        let address = Address { ip: "10.88.0.4".parse().unwrap(), prefix: 16 };
        let eth0 = Interface {
            index: 2,
            name: "eth0".into(),
            is_up: true,
            mtu: Some(1500),
            mac: "02:42:ac:11:00:02".into(),
            addresses: vec![address],
        };
        let route = Route {
            destination: "default".into(),
            gateways: vec!["10.88.0.1".parse().unwrap()],
            interface: "eth0".into(),
            source: None,
            metric: None,
            kind: "unicast",
        };
        let network = Network {
            interfaces: vec![eth0],
            routes: vec![route],
            sockets: vec![
                socket(SocketState::Listen, "0.0.0.0:8081", None),
                socket(SocketState::Established, "10.88.0.4:40000", Some("10.88.0.9:5432")),
                socket(SocketState::TimeWait, "10.88.0.4:40001", Some("10.88.0.9:5432")),
            ],
            ..Network::default()
        };
        let silent = "container api declares TCP port 8080, and nothing listens there".to_owned();
        NetReport {
            pod: Some(crate::render::pods::tests::pod("cart", vec![]).pod),
            pid: 7,
            host_network: false,
            verdicts: vec![Verdict { kind: VerdictKind::PortNotListening, statement: silent }],
            declared_ports: vec![],
            resolv_conf: ResolvConf { lines: vec!["nameserver 10.96.0.10".into()], error: None },
            network,
        }
    }

    #[test]
    fn one_screen_has_the_verdicts_first() {
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN, &report()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
Pod          finance/cart
Verdicts     container api declares TCP port 8080, and nothing listens there

Addresses
INTERFACE  STATE  MTU   ADDRESS       MAC
eth0       up     1500  10.88.0.4/16  02:42:ac:11:00:02

Routes
DESTINATION  GATEWAY    INTERFACE  SOURCE  METRIC
default      10.88.0.1  eth0       -       -

/etc/resolv.conf
nameserver 10.96.0.10

Listeners
PROTO  LOCAL         QUEUE     PROCESS     CONTAINER
tcp    0.0.0.0:8081  0 of 128  api\\x1b[7]  api

Connections
PROTO  STATE  LOCAL            REMOTE          RECV-Q  SEND-Q  RETRANS  PROCESS
tcp    ESTAB  10.88.0.4:40000  10.88.0.9:5432  0       128     3        api\\x1b[7]
and 1 in TIME-WAIT
"
        );
    }

    #[test]
    fn the_json_has_the_network_beside_the_verdicts() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["verdicts"][0]["kind"], "port_not_listening");
        assert_eq!(json["interfaces"][0]["addresses"][0]["ip"], "10.88.0.4");
        assert_eq!(json["sockets"][1]["remote"], "10.88.0.9:5432");
        assert_eq!(json["sockets"][2]["state"], "time-wait");
    }
}
