//! Five minutes of trouble on six pods, for the picture of the dashboard: a Prometheus scrapes the agent meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use podopsy_harness::{ContainerSpec, Dns, Node, PodHandle, PodSpec};

use crate::recorder::Recorder;
use crate::report;

/// A pod with one container.
struct Workload {
    namespace: &'static str,
    name: &'static str,
    command: &'static [&'static str],
    limit_mib: i64,
}

const WORKLOADS: &[Workload] = &[
    // The demo's bug, slower: each failed lookup keeps a request.
    Workload {
        namespace: "finance",
        name: "checkout-api",
        command: &[
            "dns-leaker",
            "--name",
            "payments.finance.svc.cluster.local",
            "--every",
            "500",
            "--leak",
            "1MiB",
        ],
        limit_mib: 32,
    },
    // A worker is killed every 50 s, and its container runs on.
    Workload {
        namespace: "shop",
        name: "basket",
        command: &["leak", "--child", "--times", "1000000", "--step", "512KiB", "--every", "1000"],
        limit_mib: 24,
    },
    // Killed and restarted every 80 s.
    Workload {
        namespace: "shop",
        name: "search",
        command: &["leak", "--step", "1MiB", "--every", "1000"],
        limit_mib: 80,
    },
    // Grows, and stops below its limit.
    Workload {
        namespace: "batch",
        name: "reports",
        command: &["leak", "--wait", "90000", "--step", "1536KiB", "--every", "1000", "--up-to", "120MiB"],
        limit_mib: 192,
    },
    // Well, apart from its DNS.
    Workload {
        namespace: "web",
        name: "frontend",
        command: &[
            "lookup",
            "api.shop.svc.cluster.local.",
            "cart.shop.svc.cluster.local.",
            "www.example.com",
            "cdn.example.net",
            "pay.example.org",
            "--every",
            "1200",
        ],
        limit_mib: 32,
    },
    DEAF,
];

/// Ignores SIGTERM, so that each stop ends in a SIGKILL.
const DEAF: Workload = Workload {
    namespace: "batch",
    name: "import",
    command: &["leak", "--deaf", "--up-to", "4MiB"],
    limit_mib: 32,
};

/// What the DNS server does, and for how many seconds. At the end of each phase [`DEAF`] is stopped.
const PHASES: &[(&str, u64)] =
    &[("answer", 50), ("late-120", 30), ("silent", 80), ("answer", 40), ("servfail", 50), ("answer", 50)];

impl Workload {
    fn run(&self, node: &Node, image: &str) -> anyhow::Result<PodHandle> {
        let container = ContainerSpec::new("app", image).command(self.command.iter().copied());
        let container = container.memory_limit(self.limit_mib << 20).single_process_oom_kill();
        let dns = Dns::cluster(node.dns_address(), self.namespace).option("timeout:1").option("attempts:1");
        node.run_pod(PodSpec::new(self.namespace, self.name).dns(dns).container(container))
    }
}

/// Runs the pods under an agent that serves its metrics.
pub fn run(metrics: SocketAddr, out: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let programs = podopsy_harness::podopsy(&|what| println!("{what}"))?;
    let node = Node::up()?;
    let dns = node.resolver("answer")?;
    report::step("run podopsy-agent");
    let listen = ["--listen".to_owned(), metrics.to_string()];
    let mut recorder = Recorder::start(&programs, node.cri_socket(), out, &listen)?;
    report::step("start the pods");
    let image = node.victims_image("registry.podopsy.test/demo/app:1")?;
    let pods =
        WORKLOADS.iter().map(|workload| workload.run(&node, &image)).collect::<anyhow::Result<Vec<_>>>()?;
    let _keepers: Vec<_> = pods.iter().map(|pod| node.keep_running(pod)).collect();
    for (mode, seconds) in PHASES {
        report::step(&format!("{seconds} s in which the DNS server's mode is {mode}"));
        dns.set_mode(mode)?;
        std::thread::sleep(Duration::from_secs(*seconds));
        for (pod, _) in pods.iter().zip(WORKLOADS).filter(|(_, workload)| workload.name == DEAF.name) {
            pod.stop_container("app", Duration::from_secs(1))?;
        }
    }
    report::step("stop the agent and the pods");
    recorder.end()
}
