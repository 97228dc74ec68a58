//! What the containers in trouble do, as a table. Everything in it is slow on purpose: this goes on for an hour, beside
//! whatever else the machine has to do.

use podopsy_harness::ContainerSpec;

/// How a container's kills are known, apart from any recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It is never killed.
    Never,
    /// Its first process lives on, so that its cgroup keeps the kernel's count.
    ByCgroup,
    /// It is what is killed: the runtime tells the end of each attempt.
    ByRuntime,
}

/// One kind of trouble.
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

/// One container of each; together not a kill in 20 s, some 110 DNS queries a second, and six tenths of a CPU.
pub const TROUBLES: &[Trouble] = &[
    // A worker that is killed every 50 s, in a container that runs on.
    Trouble {
        name: "worker-leaks",
        command: &["leak", "--child", "--times", "1000000", "--step", "512KiB", "--every", "1000"],
        limit_mib: 24,
        counted: Counted::ByCgroup,
        ..CALM
    },
    // Killed and started again every 100 s, twice.
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
        name: "nobody-answers",
        command: &["lookup", "silent.podopsy.test.", "--every", "15000"],
        ..CALM
    },
    Trouble { name: "burns", command: &["burner"], cpu_millis: Some(300), ..CALM },
    Trouble { name: "burns-too", command: &["burner", "--threads", "2"], cpu_millis: Some(300), ..CALM },
];

impl Trouble {
    pub fn container(&self, image: &str) -> ContainerSpec {
        let spec = ContainerSpec::new("app", image).command(self.command.iter().copied());
        // On v2, too, the killed worker must not take its container with it.
        let spec = spec.memory_limit(self.limit_mib << 20).single_process_oom_kill();
        match self.cpu_millis {
            Some(millis) => spec.cpu_limit(millis),
            None => spec,
        }
    }
}
