//! The outage: starts the pods and podopsy, silences the DNS server, and waits for the OOM kills.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use podopsy_harness::{ContainerSpec, ContainerState, Dns, Node, PodSpec};
use podopsy_model::{Event, EventKind};

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

pub fn run(out: &Path) -> anyhow::Result<Recorded> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let podopsy = podopsy_harness::podopsy(&|what| println!("{what}"))?;
    let podopsy = &podopsy[0];
    let node = Node::up()?;
    let dns = node.resolver("answer")?;
    let image = |app: &str| node.victims_image(&format!("registry.podopsy.test/finance/{app}:1.4.2"));
    let (checkout_image, pricing_image) = (image("checkout-api")?, image("pricing")?);

    report::step("start finance/checkout-api and finance/pricing");
    let resolv = Dns::cluster(node.dns_address(), "finance").option("timeout:1").option("attempts:1");
    let checkout = node.run_pod(
        PodSpec::new("finance", "checkout-api")
            .label("app", "checkout-api")
            .label("team", "payments")
            .dns(resolv)
            .container(
                ContainerSpec::new("app", &checkout_image)
                    .command(["dns-leaker", "--name", LOOKUP, "--every", "100", "--leak", "4MiB"])
                    .memory_limit(24 << 20),
            ),
    )?;
    let _pricing = node.run_pod(PodSpec::new("finance", "pricing").label("app", "pricing").container(
        ContainerSpec::new("engine", &pricing_image).command(["burner"]).memory_limit(64 << 20),
    ))?;
    // As a kubelet does: a container that ended is started again, as the next attempt.
    let _keeper = node.keep_running(&checkout);

    report::step("run podopsy watch and podopsy profile finance/pricing -d 20s");
    let (watch, lines) = watch(podopsy, node.cri_socket(), &out.join("events.jsonl"))?;
    let profile = Command::new(podopsy)
        .arg("--cri-socket")
        .arg(node.cri_socket())
        .args(["profile", "finance/pricing", "-d", "20s", "-o"])
        .arg(out.join("profile.pb.gz"))
        .arg("-o")
        .arg(out.join("profile.svg"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run podopsy profile")?;

    std::thread::sleep(Duration::from_secs(3));
    report::step("silence the DNS server; Kubernetes still shows both pods as Running");
    dns.set_mode("silent")?;
    let silent = Instant::now();
    let (events, incidents) = follow(&lines, silent)?;
    let outage = silent.elapsed();

    end(watch)?;
    let profile = profile.wait_with_output().context("wait for podopsy profile")?;
    if !profile.status.success() {
        bail!("podopsy profile failed: {}", String::from_utf8_lossy(&profile.stderr));
    }
    // After the restart's back-off, the pod is Running again.
    checkout.wait("app", Duration::from_secs(20), |status| {
        status.attempt as usize >= KILLS && status.state == ContainerState::Running
    })?;
    let pods = Command::new(podopsy)
        .arg("--cri-socket")
        .arg(node.cri_socket())
        .args(["pods", "-n", "finance"])
        .output()
        .context("run podopsy pods")?;
    report::step("stop the pods");
    Ok(Recorded {
        events,
        incidents,
        pods: String::from_utf8_lossy(&pods.stdout).into_owned(),
        profile: String::from_utf8_lossy(&profile.stdout).into_owned(),
        outage,
    })
}

/// Starts `podopsy watch -o json`. Its lines are written to `file` and sent to the receiver.
fn watch(podopsy: &Path, socket: &Path, file: &Path) -> anyhow::Result<(Child, mpsc::Receiver<Event>)> {
    let mut copy = File::create(file).with_context(|| format!("create {}", file.display()))?;
    let mut child = Command::new(podopsy)
        .arg("--cri-socket")
        .arg(socket)
        .args(["watch", "-o", "json", "--dns-timeout", "900ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run podopsy watch")?;
    let out = child.stdout.take().context("podopsy watch has no stdout")?;
    let mut log = BufReader::new(child.stderr.take().context("podopsy watch has no stderr")?);
    // Warnings may come first. If it ends before it records, they are in the error.
    let mut before = String::new();
    loop {
        let mut line = String::new();
        if log.read_line(&mut line).context("read the log of podopsy watch")? == 0 {
            bail!("podopsy watch did not start: {}", before.trim());
        }
        if line.starts_with("recording") {
            break;
        }
        before.push_str(&line);
    }
    // Drained, so that podopsy watch does not block when it writes at its end.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || -> anyhow::Result<()> {
        for line in BufReader::new(out).lines() {
            let line = line?;
            writeln!(copy, "{line}")?;
            if sender.send(serde_json::from_str(&line)?).is_err() {
                break;
            }
        }
        Ok(())
    });
    Ok((child, lines))
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
                "only {kills} of {KILLS} OOM kills within {LIMIT:?}; podopsy watch wrote {} events",
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

/// Ends podopsy watch and waits for it.
fn end(mut watch: Child) -> anyhow::Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(watch.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("end podopsy watch")?;
    let status = watch.wait().context("wait for podopsy watch")?;
    if !status.success() {
        bail!("podopsy watch ended with {status}");
    }
    Ok(())
}
