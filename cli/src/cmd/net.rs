//! `podopsy net`: the network of a pod, as the kernel and its resolv.conf have it.

use std::io;
use std::sync::Arc;

use anyhow::Context as _;
use podopsy_doctor::capability::Capability;
use podopsy_model::{PodRef, text};
use podopsy_net::{DeclaredPort, Network, Transport, Verdict, verdicts};
use podopsy_opener::{OpenError, Openers, Target};
use podopsy_pods::PodDetails;
use podopsy_stacks::symbolize::maps::Mounts;
use podopsy_stacks::tenant;
use serde::Serialize;

use crate::args::NetArgs;
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::one_pod::{ChosenProcess, Wanted};
use crate::{privilege, render};

/// The largest resolv.conf that is read, and what is shown of it.
const BYTES_MAX: u64 = 64 << 10;
const LINES_MAX: usize = 64;
const LINE_MAX: usize = 1024;

/// The answer; `-o json` prints it as it is.
#[derive(Debug, Serialize)]
pub struct NetReport {
    /// Null: the process is in no pod.
    pub pod: Option<PodRef>,
    /// The process by which the namespace was found.
    pub pid: u32,
    /// The pod has the host's network: only sockets of its own processes are listed.
    pub host_network: bool,
    pub verdicts: Vec<Verdict>,
    pub declared_ports: Vec<DeclaredPort>,
    pub resolv_conf: ResolvConf,
    #[serde(flatten)]
    pub network: Network,
}

#[derive(Debug, Default, Serialize)]
pub struct ResolvConf {
    /// Without comments.
    pub lines: Vec<String>,
    /// Why it could not be read.
    pub error: Option<&'static str>,
}

pub async fn run(context: &Context, args: NetArgs) -> anyhow::Result<CommandOutcome> {
    privilege::require("net", &[Capability::SysAdmin, Capability::SysPtrace])?;
    let pods = context.pods().await?;
    let chosen = Arc::new(ChosenProcess::find(&pods, &args.target, Wanted::Pod).await?);
    let openers = context.helpers().openers;
    let read = {
        let chosen = chosen.clone();
        tokio::task::spawn_blocking(move || read(&chosen, &openers))
    };
    let report = read.await?.with_context(|| format!("cannot read the network of {}", chosen.describe()))?;
    let mut out = io::stdout().lock();
    if !render::data(&mut out, &args.sheet.output, &report)? {
        render::net::print(&mut out, context.stdout, &report)?;
    }
    Ok(CommandOutcome::Success)
}

fn read(chosen: &ChosenProcess, openers: &Openers) -> anyhow::Result<NetReport> {
    let mut network = Network::read(&chosen.network_namespace(), &chosen.members())?;
    let host_network = chosen.is_in_host_network();
    if host_network {
        network.sockets.retain(|socket| !socket.processes.is_empty());
    }
    let declared_ports = chosen.details.as_ref().map(declared_ports).unwrap_or_default();
    Ok(NetReport {
        pod: chosen.pod.clone(),
        pid: chosen.pid,
        host_network,
        verdicts: verdicts(&network, &declared_ports),
        declared_ports,
        resolv_conf: resolv_conf(chosen.pid, openers),
        network,
    })
}

/// The ports of running containers. SCTP has no sockets that are listed here.
fn declared_ports(pod: &PodDetails) -> Vec<DeclaredPort> {
    let running = pod.containers.iter().filter(|container| container.pid.is_some());
    let ports = running.flat_map(|container| container.ports.iter().map(move |port| (container, port)));
    let declared = ports.filter_map(|(container, port)| {
        let transport = match port.protocol.as_str() {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            _ => return None,
        };
        Some(DeclaredPort { container: container.container.name.clone(), port: port.port, transport })
    });
    declared.collect()
}

/// An opener reads the file: the container may have put a FIFO there, or a file system that does not answer.
fn resolv_conf(pid: u32, openers: &Openers) -> ResolvConf {
    let target = Target { tenant: tenant::of_process(pid), pid, may_hang: Mounts::read(pid).has_remote() };
    match openers.content_in_root(target, b"/etc/resolv.conf", BYTES_MAX) {
        Ok(content) => ResolvConf { lines: lines(&content), error: None },
        Err(error) => ResolvConf { lines: Vec::new(), error: Some(reason(error)) },
    }
}

fn lines(content: &[u8]) -> Vec<String> {
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let kept = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#") && !line.starts_with(b";"));
    kept.take(LINES_MAX).map(|line| text::escape_bytes(&line[..line.len().min(LINE_MAX)])).collect()
}

fn reason(error: OpenError) -> &'static str {
    match error {
        OpenError::OutOfReach => "there is none, or the process has ended",
        OpenError::NotPermitted => "a permission is missing",
        OpenError::NotRegular => "it is not a regular file",
        OpenError::TooLarge => "it is larger than 64 KiB",
        OpenError::Replaced => "it was replaced",
        OpenError::NoAnswer => "its file system does not answer",
        OpenError::Unavailable => "the process that opens files could not be started",
    }
}

#[cfg(test)]
mod tests {
    use podopsy_pods::ContainerPort;

    use super::*;
    use crate::render::pods::tests::{container, pod};

    #[test]
    fn a_hostile_resolv_conf_is_escaped_and_bounded() {
        let content = b"# comment\n nameserver 10.96.0.10 \n\nsearch \x1b[2J\xff\n";
        assert_eq!(lines(content), ["nameserver 10.96.0.10", "search \\x1b[2J\\xff"]);
        let many = "options ndots:5\n".repeat(1000);
        assert_eq!(lines(many.as_bytes()).len(), LINES_MAX);
        assert_eq!(lines(&[b'x'; 5000])[0].len(), LINE_MAX);
    }

    #[test]
    fn only_running_containers_have_to_listen() {
        let port =
            |port, protocol: &str| ContainerPort { name: String::new(), port, protocol: protocol.into() };
        let (mut api, mut old) = (container("api", 1, "running"), container("api", 0, "exited"));
        api.ports = vec![port(8080, "TCP"), port(53, "UDP"), port(1, "SCTP")];
        old.ports = vec![port(9090, "TCP")];
        let declared = declared_ports(&pod("cart", vec![api, old]));
        let all: Vec<_> = declared.iter().map(|port| (port.port, port.transport)).collect();
        assert_eq!(all, [(8080, Transport::Tcp), (53, Transport::Udp)]);
    }
}
