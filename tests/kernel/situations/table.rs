//! What is expected: a row for each command, a cell for each situation.

use std::time::Duration;

/// What a command meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Situation {
    Live,
    Dead,
    Missing,
    Ambiguous,
    Unprivileged,
    NoAgent,
    NoRuntime,
    Hostile,
    Narrow,
    ClosedPipe,
    Interrupted,
}

impl Situation {
    pub const ALL: [Situation; 11] = [
        Situation::Live,
        Situation::Dead,
        Situation::Missing,
        Situation::Ambiguous,
        Situation::Unprivileged,
        Situation::NoAgent,
        Situation::NoRuntime,
        Situation::Hostile,
        Situation::Narrow,
        Situation::ClosedPipe,
        Situation::Interrupted,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Situation::Live => "live",
            Situation::Dead => "dead",
            Situation::Missing => "missing",
            Situation::Ambiguous => "ambiguous",
            Situation::Unprivileged => "no rights",
            Situation::NoAgent => "no agent",
            Situation::NoRuntime => "no runtime",
            Situation::Hostile => "hostile",
            Situation::Narrow => "40 columns",
            Situation::ClosedPipe => "closed pipe",
            Situation::Interrupted => "Ctrl-C",
        }
    }
}

/// A command, and what is expected of it.
#[derive(Clone, Copy)]
pub struct Row {
    pub command: &'static str,
    /// Its arguments where a cell has none of its own. TARGET, ID, FILE and others are replaced (`Stage::arguments`).
    pub args: &'static str,
    /// Whether TARGET is the dead pod where the situation is not about pods: its kills are what there is to show.
    pub is_of_dead: bool,
    pub live: Cell,
    pub dead: Cell,
    pub missing: Cell,
    pub ambiguous: Cell,
    pub unprivileged: Cell,
    pub no_agent: Cell,
    pub no_runtime: Cell,
    pub hostile: Cell,
    pub narrow: Cell,
    pub closed_pipe: Cell,
    pub interrupted: Cell,
}

impl Row {
    pub fn cells(&self) -> [(Situation, Cell); 11] {
        Situation::ALL.map(|situation| {
            let cell = match situation {
                Situation::Live => self.live,
                Situation::Dead => self.dead,
                Situation::Missing => self.missing,
                Situation::Ambiguous => self.ambiguous,
                Situation::Unprivileged => self.unprivileged,
                Situation::NoAgent => self.no_agent,
                Situation::NoRuntime => self.no_runtime,
                Situation::Hostile => self.hostile,
                Situation::Narrow => self.narrow,
                Situation::ClosedPipe => self.closed_pipe,
                Situation::Interrupted => self.interrupted,
            };
            (situation, cell)
        })
    }
}

#[derive(Clone, Copy)]
pub enum Cell {
    Run(Call),
    /// It does not apply: why.
    None(&'static str),
}

/// A call, and what is expected of it.
#[derive(Clone, Copy)]
pub struct Call {
    /// None: the row's.
    pub args: Option<&'static str>,
    pub code: i32,
    /// Has to be there, on stdout or stderr.
    pub text: &'static str,
    /// How long it goes on after its first output, before Ctrl-C.
    pub until_interrupted: Duration,
}

const fn is(code: i32, text: &'static str) -> Cell {
    Cell::Run(Call { args: None, code, text, until_interrupted: Duration::ZERO })
}

const fn call(args: &'static str, code: i32, text: &'static str) -> Cell {
    Cell::Run(Call { args: Some(args), code, text, until_interrupted: Duration::ZERO })
}

/// What is interrupted after a second: it has to have something to show.
const fn interrupted_late(args: &'static str, code: i32, text: &'static str) -> Cell {
    Cell::Run(Call { args: Some(args), code, text, until_interrupted: Duration::from_secs(1) })
}

const NO_POD: Cell = is(1, "no pod is named nothing in namespace shop");
const SEVERAL: Cell = is(2, "begins the names of 2 pods: shop/cart-1");
const NO_AGENT: Cell = is(3, "no agent answers at /nonexistent/agent.sock");
const NO_RUNTIME: Cell = is(3, "the container runtime did not answer");
/// How the escape sequence in each hostile name is shown.
const ESCAPED: &str = r"\x1b";

const ASKS_NO_AGENT: Cell = Cell::None("it asks no agent");
const ENDS: Cell = Cell::None("it ends before anyone can press a key");
const NO_TARGET: Cell = Cell::None("it is about no pod");
const OTHERS_OUTPUT: Cell = Cell::None("it prints what its program prints");
const TO_FILE: Cell = Cell::None("it prints nothing on stdout");

pub const ROWS: [Row; 21] = [
    Row {
        command: "watch",
        args: "watch dns TARGET --count 1 -d 20s",
        is_of_dead: false,
        live: is(0, "dns.failure"),
        dead: call("watch TARGET -d 1s", 0, "0 events"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "watch dns: for the node's lookups needs CAP_BPF"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: call("watch oom -d 1s", 0, "/nonexistent/cri.sock: there is no Unix socket"),
        hostile: is(0, ESCAPED),
        narrow: is(0, "dns.failure"),
        closed_pipe: call("watch dns TARGET", 0, ""),
        interrupted: call("watch TARGET", 0, "nothing lost"),
    },
    Row {
        command: "dns",
        args: "dns TARGET --for 3s --dns-timeout 300ms",
        is_of_dead: false,
        live: is(0, "FAILING NAME"),
        dead: call("dns TARGET --for 1s", 0, "0 lookups"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "dns: for the node's lookups needs CAP_BPF"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: is(0, ESCAPED),
        narrow: is(0, "nxdomain"),
        closed_pipe: call("dns TARGET", 0, ""),
        interrupted: call("dns TARGET", 0, "nothing lost"),
    },
    Row {
        command: "profile",
        args: "profile TARGET -d 2s",
        is_of_dead: false,
        live: is(0, "price_options"),
        dead: is(1, "has no running container to sample"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "profile: needs CAP_BPF"),
        no_agent: call("profile TARGET --since 1m", 3, "no agent answers at /nonexistent/agent.sock"),
        no_runtime: NO_RUNTIME,
        hostile: is(0, ESCAPED),
        narrow: is(0, "FUNCTION"),
        closed_pipe: is(0, "samples in"),
        interrupted: interrupted_late("profile TARGET", 0, "samples in"),
    },
    Row {
        command: "oom",
        args: "oom TARGET",
        is_of_dead: true,
        live: is(1, "no OOM kills and no other SIGKILLs match"),
        dead: is(0, "OOMKilled"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "oom: needs root"),
        no_agent: NO_AGENT,
        no_runtime: is(0, "leak["),
        hostile: is(0, ESCAPED),
        narrow: is(0, "VICTIM"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "oom show",
        args: "oom show ID",
        is_of_dead: true,
        live: Cell::None("an id is of a kill"),
        dead: is(0, "whose limit"),
        missing: call("oom show no-such-id", 1, "no OOM has the id no-such-id"),
        ambiguous: call("oom show BOOT", 2, "give more characters of the id"),
        unprivileged: is(4, "oom: needs root"),
        no_agent: NO_AGENT,
        no_runtime: is(0, "whose limit"),
        hostile: is(0, ESCAPED),
        narrow: is(0, "whose limit"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "events",
        args: "events TARGET",
        is_of_dead: true,
        live: is(0, "dns.failure"),
        dead: is(0, "oom.kill"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "no permission to connect to the agent"),
        no_agent: NO_AGENT,
        no_runtime: is(0, "oom.kill"),
        hostile: is(0, ESCAPED),
        narrow: is(0, "oom.kill"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "timeline",
        args: "timeline TARGET",
        is_of_dead: true,
        live: is(0, "dns-failures"),
        dead: is(0, "oom-kill"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "no permission to connect to the agent"),
        no_agent: NO_AGENT,
        no_runtime: is(0, "oom-kill"),
        hostile: is(0, ESCAPED),
        narrow: is(0, "oom-kill"),
        closed_pipe: is(0, ""),
        interrupted: call("timeline TARGET -f", 0, "following"),
    },
    Row {
        command: "report",
        args: "report TARGET -w FILE.html",
        is_of_dead: true,
        live: is(0, "wrote"),
        dead: is(0, "wrote"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "no permission to connect to the agent"),
        no_agent: NO_AGENT,
        no_runtime: is(0, "wrote"),
        hostile: is(0, "wrote"),
        narrow: is(0, "wrote"),
        closed_pipe: call("report TARGET -w -", 0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "bundle",
        args: "bundle TARGET -w FILE.podopsy",
        is_of_dead: true,
        live: is(0, "wrote"),
        dead: is(0, "wrote"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "no permission to connect to the agent"),
        no_agent: NO_AGENT,
        no_runtime: is(0, "wrote"),
        hostile: is(0, "wrote"),
        narrow: is(0, "wrote"),
        closed_pipe: call("bundle TARGET -w -", 0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "restarts",
        args: "restarts TARGET",
        is_of_dead: true,
        live: is(1, "no container has restarted"),
        dead: is(0, "OOMKilled (137)"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "restarts: needs root"),
        no_agent: NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: call("restarts TARGET --all", 0, ESCAPED),
        narrow: call("restarts TARGET --all", 0, "RESTARTS"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "pods",
        args: "pods TARGET",
        is_of_dead: false,
        live: is(0, "running"),
        dead: is(0, "exited"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "pods: needs root"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: is(0, ESCAPED),
        narrow: is(0, "running"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "inspect",
        args: "inspect TARGET",
        is_of_dead: false,
        live: is(0, "running since"),
        dead: is(0, "exited at"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "inspect: needs root"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: is(0, ESCAPED),
        narrow: is(0, "cgroup ids"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "net",
        args: "net TARGET",
        is_of_dead: false,
        live: is(0, "eth0"),
        dead: is(0, "eth0"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "net: needs CAP_SYS_ADMIN"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: is(0, "Listeners"),
        narrow: is(0, "eth0"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "enter",
        args: "enter TARGET -- ip -br addr",
        is_of_dead: false,
        live: is(0, "eth0"),
        dead: is(0, "eth0"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "enter: needs CAP_SYS_ADMIN"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: is(0, "eth0"),
        narrow: OTHERS_OUTPUT,
        // SIGPIPE ends the program.
        closed_pipe: call("enter TARGET -- cat /proc/net/dev", 141, ""),
        interrupted: call("enter TARGET -- tail -f /proc/net/dev", 130, "eth0"),
    },
    Row {
        command: "core",
        args: "core TARGET/app -w FILE.core",
        is_of_dead: false,
        live: is(0, "the process was paused for"),
        dead: call("core TARGET/api -w FILE.core", 1, "has no running process"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "core: needs CAP_SYS_PTRACE"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: call("core TARGET/SHOWN -w FILE.core", 0, ESCAPED),
        // Of another process: only one can trace the same.
        narrow: call("core TARGET/SHOWN2 -w FILE.core", 0, "the process was paused for"),
        closed_pipe: TO_FILE,
        interrupted: call("core pid:LARGE -w FILE.core", 3, "nothing was written"),
    },
    Row {
        command: "top -b",
        args: "top TARGET -b",
        is_of_dead: false,
        live: is(0, "client"),
        dead: is(1, "no containers match"),
        missing: NO_POD,
        ambiguous: SEVERAL,
        unprivileged: is(4, "no permission to connect to the agent"),
        no_agent: NO_AGENT,
        no_runtime: NO_RUNTIME,
        hostile: is(0, ESCAPED),
        narrow: is(0, "CPU"),
        closed_pipe: is(0, ""),
        interrupted: call("top TARGET -b --count 0", 0, "client"),
    },
    Row {
        command: "mcp",
        args: "mcp",
        is_of_dead: false,
        // Its input is empty, and so ends at once.
        live: is(0, ""),
        dead: NO_TARGET,
        missing: NO_TARGET,
        ambiguous: NO_TARGET,
        unprivileged: is(0, ""),
        no_agent: is(0, ""),
        no_runtime: is(0, ""),
        hostile: NO_TARGET,
        narrow: Cell::None("it talks to a program"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "doctor",
        args: "doctor",
        is_of_dead: false,
        live: is(0, "Probes"),
        dead: NO_TARGET,
        missing: NO_TARGET,
        ambiguous: NO_TARGET,
        unprivileged: is(4, "doctor: needs CAP_BPF"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: is(0, "/nonexistent/cri.sock: there is no Unix socket"),
        hostile: NO_TARGET,
        narrow: is(0, "Probes"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "explain",
        args: "explain incident",
        is_of_dead: false,
        live: is(0, "incident"),
        dead: NO_TARGET,
        missing: call("explain no-such-term", 1, "the glossary has no term"),
        ambiguous: call("explain cgroup", 0, "cgroup id"),
        unprivileged: is(0, "incident"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: is(0, "incident"),
        hostile: call("explain RAW", 1, "the glossary has no term"),
        narrow: call("explain", 0, "cgroup id"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "completion",
        args: "completion bash",
        is_of_dead: false,
        live: is(0, "complete"),
        dead: NO_TARGET,
        missing: NO_TARGET,
        ambiguous: NO_TARGET,
        unprivileged: is(0, "complete"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: is(0, "complete"),
        hostile: NO_TARGET,
        narrow: Cell::None("it is a script for a shell, which is not laid out"),
        closed_pipe: is(0, ""),
        interrupted: ENDS,
    },
    Row {
        command: "man-pages",
        args: "man-pages FOLDER",
        is_of_dead: false,
        live: is(0, ""),
        dead: NO_TARGET,
        missing: call("man-pages /nonexistent/folder", 3, "/nonexistent/folder"),
        ambiguous: NO_TARGET,
        unprivileged: is(4, "Permission denied"),
        no_agent: ASKS_NO_AGENT,
        no_runtime: is(0, ""),
        hostile: NO_TARGET,
        narrow: TO_FILE,
        closed_pipe: TO_FILE,
        interrupted: ENDS,
    },
];
