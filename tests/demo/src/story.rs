//! The outage: brings pods up, lets podopsy record, takes DNS away, and waits for the kills.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use podopsy_harness::{ContainerSpec, ContainerState, Dns, Node, PodSpec};
use podopsy_model::{Event, Kind};

use crate::report;

/// Kills of checkout-api that make the point.
const KILLS: usize = 3;
/// The outage ends here, whatever was caught.
const LIMIT: Duration = Duration::from_secs(120);
const LOOKUP: &str = "payments.finance.svc.cluster.local";

/// What podopsy saw, and what Kubernetes would show for the same time.
pub struct Caught {
    pub events: Vec<Event>,
    /// `podopsy pods`, after the last kill.
    pub pods: String,
    /// `podopsy profile`'s own summary.
    pub profile: String,
    /// From the moment the resolver fell silent to the last kill.
    pub outage: Duration,
}

pub fn run(out: &Path) -> anyhow::Result<Caught> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let podopsy = podopsy_harness::podopsy(&|what| println!("{what}"))?;
    let podopsy = &podopsy[0];
    let node = Node::up()?;
    let dns = node.resolver("answer")?;
    let image = |app: &str| node.victims_image(&format!("registry.podopsy.test/finance/{app}:1.4.2"));
    let (checkout_image, pricing_image) = (image("checkout-api")?, image("pricing")?);

    report::step("two pods of the namespace finance");
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
    // The kubelet's part: start again what died, with the next attempt.
    let _keeper = node.keep_running(&checkout);

    report::step("podopsy watch, podopsy profile finance/pricing -d 20s");
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
    report::step("the resolver stops answering; the pods stay Running");
    dns.set_mode("silent")?;
    let silent = Instant::now();
    let events = follow(&lines, silent)?;
    let outage = silent.elapsed();

    end(watch)?;
    let profile = profile.wait_with_output().context("wait for podopsy profile")?;
    if !profile.status.success() {
        bail!("podopsy profile failed: {}", String::from_utf8_lossy(&profile.stderr));
    }
    // The back-off of the restart passes, and the pod says Running again.
    checkout.wait("app", Duration::from_secs(20), |status| {
        status.attempt as usize >= KILLS && status.state == ContainerState::Running
    })?;
    let pods = Command::new(podopsy)
        .arg("--cri-socket")
        .arg(node.cri_socket())
        .args(["pods", "-n", "finance"])
        .output()
        .context("run podopsy pods")?;
    report::step("tearing the pods down");
    Ok(Caught {
        events,
        pods: String::from_utf8_lossy(&pods.stdout).into_owned(),
        profile: String::from_utf8_lossy(&profile.stdout).into_owned(),
        outage,
    })
}

/// `podopsy watch -o json`, its lines kept in `file` and handed on.
fn watch(podopsy: &Path, socket: &Path, file: &Path) -> anyhow::Result<(Child, mpsc::Receiver<Event>)> {
    let mut kept = File::create(file).with_context(|| format!("create {}", file.display()))?;
    let mut child = Command::new(podopsy)
        .arg("--cri-socket")
        .arg(socket)
        .args(["watch", "-o", "json", "--dns-timeout", "900ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run podopsy watch")?;
    let out = child.stdout.take().context("podopsy watch has no stdout")?;
    let mut said = BufReader::new(child.stderr.take().context("podopsy watch has no stderr")?);
    // Warnings may come first; what ends without the word has not started.
    let mut before = String::new();
    loop {
        let mut line = String::new();
        if said.read_line(&mut line).context("read what podopsy watch says")? == 0 {
            bail!("podopsy watch did not start: {}", before.trim());
        }
        if line.starts_with("recording") {
            break;
        }
        before.push_str(&line);
    }
    // Its last words come at the end; nobody may block on them.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let (lines_in, lines) = mpsc::channel();
    std::thread::spawn(move || -> anyhow::Result<()> {
        for line in BufReader::new(out).lines() {
            let line = line?;
            writeln!(kept, "{line}")?;
            if lines_in.send(serde_json::from_str(&line)?).is_err() {
                break;
            }
        }
        Ok(())
    });
    Ok((child, lines))
}

/// Shows events as they come, until checkout-api has been killed often enough.
fn follow(lines: &mpsc::Receiver<Event>, since: Instant) -> anyhow::Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut kills = 0;
    let mut live = report::Live::default();
    while kills < KILLS {
        let left = LIMIT.saturating_sub(since.elapsed());
        let Ok(event) = lines.recv_timeout(left) else {
            bail!("{kills} of {KILLS} kills within {LIMIT:?}; {} events were seen", events.len());
        };
        // The incident says once more, with more, what its kills have said; it is in events.jsonl.
        if event.kind == Kind::OomIncident {
            continue;
        }
        live.show(&event);
        let is_checkout = event.pod.as_ref().is_some_and(|pod| pod.name == "checkout-api");
        kills += usize::from(event.kind == Kind::OomKill && is_checkout);
        events.push(event);
    }
    Ok(events)
}

/// Asks podopsy watch to end, and waits for it.
fn end(mut watch: Child) -> anyhow::Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(watch.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("end podopsy watch")?;
    let status = watch.wait().context("wait for podopsy watch")?;
    if !status.success() {
        bail!("podopsy watch ended with {status}");
    }
    Ok(())
}
