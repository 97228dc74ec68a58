//! The failing containers, as a table. Their rates are low on purpose: a soak runs for an hour beside other work.

use podopsy_harness::ContainerSpec;

/// How a container's kills are counted without podopsy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It is never killed.
    Never,
    /// Its first process survives, so its cgroup and the kernel's count remain.
    ByCgroup,
    /// Its first process is killed: the runtime reports the end of each attempt.
    ByRuntime,
}

/// A way in which a container fails.
pub struct Trouble {
    pub name: &'static str,
    command: &'static [&'static str],
    limit_mib: i64,
    cpu_millis: Option<i64>,
    pub counted: Counted,
    pub restarts: bool,
}

const CALM: Trouble = Trouble {
    name: "",
    command: &[],
    limit_mib: 64,
    cpu_millis: None,
    counted: Counted::Never,
    restarts: false,
};

/// One container of each. Together: less than one kill in 20 s, some 110 DNS queries a second, and 0.6 CPUs.
pub const TROUBLES: &[Trouble] = &[
    // A worker is killed every 50 s; its container keeps running.
    Trouble {
        name: "worker-leaks",
        command: &["leak", "--child", "--times", "1000000", "--step", "512KiB", "--every", "1000"],
        limit_mib: 24,
        counted: Counted::ByCgroup,
        ..CALM
    },
    // Two containers that are killed and restarted every 100 s.
    Trouble {
        name: "leaks",
        command: &["leak", "--step", "512KiB", "--every", "1000"],
        limit_mib: 48,
        counted: Counted::ByRuntime,
        restarts: true,
        ..CALM
    },
    Trouble {
        name: "leaks-too",
        command: &["leak", "--step", "512KiB", "--every", "1000"],
        limit_mib: 52,
        counted: Counted::ByRuntime,
        restarts: true,
        ..CALM
    },
    // A new cgroup, process and container id every 15 s.
    Trouble {
        name: "crash-loop",
        command: &["exits", "--after", "12000", "--code", "1"],
        restarts: true,
        ..CALM
    },
    // A lookup is two queries; 25 a second of each.
    Trouble { name: "asks", command: &["lookup", "shop.podopsy.test.", "--every", "40"], ..CALM },
    Trouble { name: "asks-too", command: &["lookup", "api.podopsy.test.", "--every", "40"], ..CALM },
    // Through the search list: eight queries a lookup.
    Trouble { name: "asks-wrong", command: &["lookup", "nxdomain.podopsy.test", "--every", "4000"], ..CALM },
    Trouble { name: "asks-wrong-too", command: &["lookup", "payments.nowhere", "--every", "4000"], ..CALM },
    Trouble {
        name: "server-fails",
        command: &["lookup", "servfail.podopsy.test.", "--every", "10000"],
        ..CALM
    },
    Trouble {
        name: "server-silent",
        command: &["lookup", "silent.podopsy.test.", "--every", "15000"],
        ..CALM
    },
    Trouble { name: "burns", command: &["burner"], cpu_millis: Some(300), ..CALM },
    Trouble { name: "burns-too", command: &["burner", "--threads", "2"], cpu_millis: Some(300), ..CALM },
];

impl Trouble {
    pub fn container(&self, image: &str) -> ContainerSpec {
        let spec = ContainerSpec::new("app", image).command(self.command.iter().copied());
        // On v2, too, the kill of a worker must not end its container.
        let spec = spec.memory_limit(self.limit_mib << 20).single_process_oom_kill();
        match self.cpu_millis {
            Some(millis) => spec.cpu_limit(millis),
            None => spec,
        }
    }
}
