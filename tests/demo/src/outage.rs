//! The outage: starts the pods and podopsy, silences the DNS server, and waits for the OOM kills.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use podopsy_harness::{ContainerSpec, ContainerState, Dns, Keeper, Node, PodHandle, PodSpec, Resolver};
use podopsy_model::{Event, EventKind};

use crate::recorder::Recorder;
use crate::report;

/// The outage ends after this many OOM kills of checkout-api.
const KILLS: usize = 3;
/// The demo fails if the kills take longer.
const LIMIT: Duration = Duration::from_secs(120);
const LOOKUP: &str = "payments.finance.svc.cluster.local";

/// What podopsy recorded, and what Kubernetes would show for the same time.
pub struct Recorded {
    pub events: Vec<Event>,
    /// The incidents, which have the stacks of the kills.
    pub incidents: Vec<Event>,
    /// `podopsy pods`, after the last kill.
    pub pods: String,
    /// The summary that `podopsy profile` prints.
    pub profile: String,
    /// From the DNS server's last answer to the last kill.
    pub outage: Duration,
}

/// The pods, their resolver, and the agent.
pub struct Outage {
    pub recorder: Recorder,
    out: PathBuf,
    dns: Resolver,
    checkout: PodHandle,
    _pricing: PodHandle,
    _keeper: Keeper,
    // Removed last.
    _node: Node,
}

impl Outage {
    /// Starts the pods and podopsy.
    pub fn start(out: &Path) -> anyhow::Result<Outage> {
        fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
        let programs = podopsy_harness::podopsy(&|what| println!("{what}"))?;
        let node = Node::up()?;
        let dns = node.resolver("answer")?;
        report::step("start finance/checkout-api and finance/pricing");
        let checkout = node.run_pod(checkout_api(&node)?)?;
        let pricing = node.victims_image("registry.podopsy.test/finance/pricing:1.4.2")?;
        let pricing =
            node.run_pod(PodSpec::new("finance", "pricing").label("app", "pricing").container(
                ContainerSpec::new("engine", &pricing).command(["burner"]).memory_limit(64 << 20),
            ))?;
        // As a kubelet does: a container that ended is started again, as the next attempt.
        let keeper = node.keep_running(&checkout);
        report::step("run podopsy-agent");
        let recorder = Recorder::start(&programs, node.cri_socket(), out, &[])?;
        let out = out.to_owned();
        Ok(Outage { recorder, out, dns, checkout, _pricing: pricing, _keeper: keeper, _node: node })
    }

    /// Silences the DNS server, and waits for the OOM kills.
    pub fn record(&mut self) -> anyhow::Result<Recorded> {
        report::step("run podopsy profile finance/pricing -d 20s");
        let profile = self
            .recorder
            .podopsy(&["profile", "finance/pricing", "-d", "20s", "-o"])
            .arg(self.out.join("profile.pb.gz"))
            .arg("-o")
            .arg(self.out.join("profile.svg"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run podopsy profile")?;
        std::thread::sleep(Duration::from_secs(3));
        report::step("silence the DNS server; Kubernetes still shows both pods as Running");
        self.dns.set_mode("silent")?;
        let silent = Instant::now();
        let (events, incidents) = follow(&self.recorder.events, silent)?;
        let outage = silent.elapsed();
        let profile = profile.wait_with_output().context("wait for podopsy profile")?;
        if !profile.status.success() {
            bail!("podopsy profile failed: {}", String::from_utf8_lossy(&profile.stderr));
        }
        // After the restart's back-off, the pod is Running again.
        self.checkout.wait("app", Duration::from_secs(20), |status| {
            status.attempt as usize >= KILLS && status.state == ContainerState::Running
        })?;
        let pods = self.recorder.podopsy(&["pods", "-n", "finance"]).output().context("run podopsy pods")?;
        Ok(Recorded {
            events,
            incidents,
            pods: String::from_utf8_lossy(&pods.stdout).into_owned(),
            profile: String::from_utf8_lossy(&profile.stdout).into_owned(),
            outage,
        })
    }
}

/// Leaks a buffer on every failed lookup.
fn checkout_api(node: &Node) -> anyhow::Result<PodSpec> {
    let image = node.victims_image("registry.podopsy.test/finance/checkout-api:1.4.2")?;
    let resolv = Dns::cluster(node.dns_address(), "finance").option("timeout:1").option("attempts:1");
    let container = ContainerSpec::new("app", &image)
        .command(["dns-leaker", "--name", LOOKUP, "--every", "100", "--leak", "4MiB"])
        .memory_limit(24 << 20);
    let pod = PodSpec::new("finance", "checkout-api").label("app", "checkout-api").label("team", "payments");
    Ok(pod.dns(resolv).container(container))
}

/// Prints events as they come, until checkout-api has been killed [`KILLS`] times. Returns them, and the incidents so far.
fn follow(lines: &mpsc::Receiver<Event>, since: Instant) -> anyhow::Result<(Vec<Event>, Vec<Event>)> {
    let (mut events, mut incidents) = (Vec::new(), Vec::new());
    let mut kills = 0;
    let mut live = report::Live::default();
    while kills < KILLS {
        let remaining = LIMIT.saturating_sub(since.elapsed());
        let Ok(event) = lines.recv_timeout(remaining) else {
            bail!(
                "only {kills} of {KILLS} OOM kills within {LIMIT:?}; podopsy-agent wrote {} events",
                events.len()
            );
        };
        // An incident repeats its kills with more details; it is in events.jsonl.
        if event.kind == EventKind::OomIncident {
            incidents.push(event);
            continue;
        }
        live.show(&event);
        let is_checkout = event.pod.as_ref().is_some_and(|pod| pod.name == "checkout-api");
        kills += usize::from(event.kind == EventKind::OomKill && is_checkout);
        events.push(event);
    }
    Ok((events, incidents))
}
