//! The command line. All values are parsed here, so that a wrong one is refused before anything starts.

#[cfg(test)]
mod docs_tests;
mod examples;
mod fleet;
mod history;
mod live;
mod mcp;
mod output;
mod pods;
mod process;
mod report;
mod timeline;
mod top;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use podopsy_model::Target;
use podopsy_model::duration;
use podopsy_recorder::options::{dns_ports, https_resolvers};

use crate::exit::AlreadyPrinted;
use crate::terminal::{ColourChoice, note, visible};
pub use fleet::{
    CompleteArgs, FleetCli, FleetCommand, FleetDoctorArgs, FleetOptions, command as fleet_command,
};
pub use history::{EventsArgs, HistoryArgs};
pub use live::{
    DiffArgs, DiffFormat, DnsArgs, Hook, ProfileArgs, ProfileCommand, Stacks, TopFormat, WatchArgs, WatchKind,
};
pub use mcp::McpArgs;
pub use output::{CustomColumn, OutputArgs, OutputFormat, SheetArgs, SheetFormat};
pub use pods::{PodFilterArgs, SelectionArgs};
pub use process::{CoreArgs, EnterArgs, NamespaceKind, NetArgs, OneTargetArgs};
pub use report::{BundleArgs, EvidenceArgs, Redaction, ReportArgs};
pub use timeline::{ExplainArgs, RestartsArgs, TimelineArgs};
pub use top::TopArgs;

const AFTER_HELP: &str = "\
Examples:
  podopsy watch                         live OOM kills, other SIGKILLs and failed lookups, with their pods
  podopsy watch dns -n shop -o json     one namespace's failed lookups, one JSON object per line
  podopsy dns shop/cart                 what a pod looks up, with results and latencies
  podopsy profile shop/cart -o cart.svg where a pod spends its CPU time, as a flame graph
  podopsy profile -a -o node.pb.gz      the whole node, for go tool pprof
  podopsy profile --since 10m shop/cart the last ten minutes, from the agent's stored profiles
  podopsy profile diff a.pb.gz b.pb.gz  which functions take more CPU time than before
  podopsy oom                           OOM kills of the last day, including those that Kubernetes does not show
  podopsy watch sigkill                 who sends SIGKILL to containers: kubelet, systemd-oomd, someone's kill -9
  podopsy oom --silent --since 1h       OOM kills of the last hour that Kubernetes does not show
  podopsy events --since 1h shop/cart   what happened to a pod, from the agent's history
  podopsy oom show 3f2a-28908           the autopsy of one OOM kill
  podopsy timeline deploy/cart -f       starts, kills, memory and failed lookups of some pods, in order
  podopsy top                           what each container uses, live, and the time until its limit
  podopsy report shop/cart -w cart.html all of it in one HTML file
  podopsy bundle shop/cart -w a.podopsy the evidence in one file, for --from
  podopsy restarts                      containers that restarted: Kubernetes' reason, and the kernel's beside it
  podopsy pods -n shop                  pods and containers, restarts, limits and usage
  kubectl podopsy oom -A                the same of all nodes of a cluster, as kubectl's plugin
  podopsy inspect pid:4242              which pod does this process belong to?
  podopsy net shop/cart                 addresses, routes, listeners and connections with their process
  podopsy enter shop/cart -- ip addr    the host's tools in a pod's network namespace
  podopsy core shop/cart -w core.zst    a core of a running process, for gdb
  podopsy explain incident              what a term means
  podopsy mcp                           serves the history to an assistant (Model Context Protocol)
  podopsy doctor                        what works here, and how to fix the rest
  source <(podopsy completion bash)     completes commands, options and names of pods in bash

TARGET has the same syntax in every command, and most commands take several:
  namespace/pod, namespace/pod/container    a pod, or one of its containers
  cart-api                                  a pod by its name or the beginning of it, or a container by its id's
  deploy/NAME, sts/, ds/, rs/, job/, cronjob/, namespace/deploy/NAME    the pods of a controller
  pid:N, cgroup:PATH                        a process, a cgroup and those below it
-n NAMESPACE and -l LABELS select pods as in kubectl.

Exit codes:
  0  done (also after Ctrl-C, and when the reader of a pipe has closed it)
  1  nothing was found
  2  wrong usage, also a TARGET that several pods match
  3  something failed
  4  a permission is missing";

/// Flight recorder and autopsy kit for Kubernetes nodes: what happened to this pod, and where in the code?
///
/// Runs on the node, as root, without an agent and without the API server. Events and profiles are attributed by
/// memory cgroup, so they name the pod even after it is gone.
#[derive(Debug, Parser)]
#[command(name = "podopsy", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// The container runtime's CRI v1 socket [default: the usual paths are tried]
    #[arg(long, global = true, value_name = "PATH", env = "PODOPSY_CRI_SOCKET", value_parser = PathBufValueParser::new().map(socket_path))]
    pub cri_socket: Option<PathBuf>,

    /// How long to wait for an answer of the container runtime
    #[arg(long, global = true, value_name = "TIME", default_value = "2s", value_parser = duration::parse_cri_timeout)]
    pub cri_timeout: Duration,

    /// The node's name in events and profiles [default: the host's name]
    #[arg(long, global = true, value_name = "NAME", env = "NODE_NAME")]
    pub node: Option<String>,

    /// Record also where the rest of this container's memory limit may not be enough for it
    #[arg(long, global = true, hide_short_help = true)]
    pub ignore_memory_limit: bool,

    /// Colours: auto on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = ColourChoice::Auto)]
    pub color: ColourChoice,

    /// Log to stderr what podopsy does; -vv and -vvv log more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Watch(WatchArgs),
    Dns(DnsArgs),
    Profile(ProfileArgs),
    Oom(OomArgs),
    Events(EventsArgs),
    Timeline(TimelineArgs),
    Top(TopArgs),
    Report(ReportArgs),
    Bundle(BundleArgs),
    Restarts(RestartsArgs),
    Pods(PodsArgs),
    Inspect(InspectArgs),
    Net(NetArgs),
    Enter(EnterArgs),
    Core(CoreArgs),
    Doctor(DoctorArgs),
    Explain(ExplainArgs),
    Mcp(McpArgs),
    Completion(CompletionArgs),
    #[command(hide = true)]
    ManPages(ManPagesArgs),
    #[command(hide = true)]
    Bridge(HistoryArgs),
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete(CompleteArgs),
}

/// Print the completion script of a shell
///
/// In bash, zsh and fish it also completes the names of pods, from the agent or the container runtime, the ids of kills, and
/// terms. Names need the rights to ask for them: they are completed in a root shell.
///
/// Load it with:
///   bash:  source <(podopsy completion bash)
///   zsh:   podopsy completion zsh > "${fpath[1]}/_podopsy"
///   fish:  podopsy completion fish > ~/.config/fish/completions/podopsy.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
#[command(after_help = examples::COMPLETION)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Write the manual's pages, one for each command
#[derive(Debug, Args)]
pub struct ManPagesArgs {
    /// The folder that they are written to
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// List OOM kills: which limit was hit, what was killed, whether Kubernetes shows it; and SIGKILLs without an OOM
///
/// Asks the agent, if one runs, or reads the store that it left (--state-dir). The kernel's log adds the kills that
/// happened while no agent ran. Lists its sources on stderr. Exits 1 if there are no kills.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = examples::OOM)]
pub struct OomArgs {
    #[command(subcommand)]
    pub show: Option<OomCommand>,

    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Only kills of the last TIME, such as 30m, 24h or 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
    pub since: Duration,

    /// Only kills that Kubernetes does not show: the container still runs, or ended with another reason than OOMKilled or
    /// with exit code 0
    #[arg(long)]
    pub silent: bool,

    /// A row for each kill, also for those that repeat in one cgroup
    #[arg(long)]
    pub each: bool,

    /// At most the newest N rows
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub most: u32,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub history: HistoryArgs,
}

#[derive(Debug, Subcommand)]
pub enum OomCommand {
    Show(ShowArgs),
}

/// Show the autopsy of one OOM kill or other SIGKILL on one screen
#[derive(Debug, Args)]
#[command(after_help = examples::SHOW)]
pub struct ShowArgs {
    /// The id from `podopsy oom`, or the beginning of it; with --from, not needed for a bundle of one kill
    #[arg(required_unless_present = "from")]
    pub id: Option<String>,

    /// Read a bundle instead of the agent's history
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    #[command(flatten)]
    pub sheet: SheetArgs,

    #[command(flatten)]
    pub history: HistoryArgs,
}

/// List pods and containers with state, restarts, memory and limits
#[derive(Debug, Args)]
#[command(after_help = examples::PODS)]
pub struct PodsArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show a pod with its containers and processes, or the pod of a process, container or cgroup
#[derive(Debug, Args)]
#[command(after_help = examples::INSPECT)]
pub struct InspectArgs {
    /// Pods, containers, processes or controllers, such as shop/cart, deploy/cart or pid:4242
    #[arg(value_name = "TARGET", required_unless_present_any = ["namespace", "selector", "all_namespaces"])]
    pub targets: Vec<Target>,

    #[command(flatten)]
    pub pods: PodFilterArgs,

    #[command(flatten)]
    pub sheet: SheetArgs,
}

/// Check what works on this machine, with the command or manifest line that fixes the rest
///
/// Exits 0 if nothing essential is missing, 3 if something is, 4 if privileges are missing.
#[derive(Debug, Args)]
#[command(after_help = examples::DOCTOR)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub sheet: SheetArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    Table,
    Wide,
    Json,
}

/// Accepts `unix://` URLs, which the kubelet and crictl use for sockets.
fn socket_path(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_prefix("unix://")) {
        Some(plain) => PathBuf::from(plain),
        None => path,
    }
}

/// What this process was called as.
pub enum Called {
    Podopsy(Cli),
    /// kubectl's plugin, and the options for podopsy on a node.
    Plugin(FleetCli, Vec<OsString>),
}

/// The plugin's file name: kubectl finds it by that.
const PLUGIN: &str = "kubectl-podopsy";

/// Parses this process's arguments. Prints help, version and usage errors.
pub fn parse() -> anyhow::Result<Called> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let is_plugin =
        args.first().and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == PLUGIN);
    let read = if is_plugin {
        fleet::read(&args).map(|(cli, forwarded)| Called::Plugin(cli, forwarded))
    } else {
        read(&args).map(Called::Podopsy)
    };
    read.map_err(|error| {
        // clap repeats arguments unescaped: print without colours and escaped if one has control characters.
        let is_harmless = args.iter().all(|arg| arg.to_str().is_some_and(|text| visible(text) == text));
        if is_harmless {
            let _ = error.print();
        } else {
            let text = error.render().to_string();
            note(&text.trim_end().split('\n').map(visible).collect::<Vec<_>>().join("\n"));
        }
        AlreadyPrinted(u8::try_from(error.exit_code()).unwrap_or(2)).into()
    })
}

/// Parses the arguments with clap, and checks the limits of the probes.
fn read(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse_from(args)?;
    match &cli.command {
        Command::Watch(args) => check_dns_options(&args.dns_ports, &args.doh_resolvers)?,
        Command::Dns(args) => check_dns_options(&args.dns_ports, &args.doh_resolvers)?,
        Command::Oom(args) => check_oom_target(args)?,
        _ => {}
    }
    Ok(cli)
}

/// Behind an option, `show` would be a pod's name.
fn check_oom_target(args: &OomArgs) -> Result<(), clap::Error> {
    match args.selection.targets.first() {
        Some(Target::Name(name)) if name == "show" => {
            let reason = "`oom show` takes its options after the id; a pod of that name is pod/show";
            Err(Cli::command().error(ErrorKind::ArgumentConflict, reason))
        }
        _ => Ok(()),
    }
}

fn check_dns_options(ports: &[u16], resolvers: &[IpAddr]) -> Result<(), clap::Error> {
    let checked = dns_ports(ports).map(drop).and_then(|()| https_resolvers(resolvers).map(drop));
    checked.map_err(|error| Cli::command().error(ErrorKind::TooManyValues, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        super::read(line.split(' '))
    }

    #[test]
    fn the_definition_of_the_arguments_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn valid_command_lines_are_accepted() {
        for line in [
            "podopsy watch",
            "podopsy watch oom dns --all --dns-timeout 500ms --count 3 -d 30s -n finance -o json",
            "podopsy watch dns --slow-over 200ms --sample 100 --dns-port 53 --dns-port 5353 --doh-resolver 10.0.0.53",
            "podopsy profile finance/pricing -d 30s -F 99 -o a.pb.gz -o a.folded -o a.svg",
            "podopsy profile -a -o x.svg",
            "podopsy profile --since 10m shop/cart -o x.pb.gz --socket /run/podopsy/agent.sock",
            "podopsy profile -a -o x.speedscope.json -o x.firefox.json",
            "podopsy profile -a -o x.json --format speedscope",
            "podopsy profile -a -w x.svg -w x.pb.gz -o json --color never",
            "podopsy profile -a -w x.json --format speedscope",
            "podopsy pods -o custom-columns=POD:.pod.name,UID:.pod.uid --no-headers --sort-by .pod.name",
            "podopsy oom -o jsonpath={.items[*].incident.id}",
            "podopsy events -o name",
            "podopsy profile diff a.pb.gz b.pb.gz",
            "podopsy profile diff a b --absolute --value samples --top 0 -w x.svg -w x.folded -o json",
            "podopsy profile shop/diff",
            "podopsy dns",
            "podopsy dns --dns-hook socket",
            "podopsy watch dns --dns-hook cgroup",
            "podopsy dns --slow --over 1s --queries --for 30s -n shop -l app=web shop/cart -o json",
            "podopsy pods -n x -l app=web -o wide",
            "podopsy watch sigkill --host",
            "podopsy watch oom dns shop/cart deploy/web -l app=web",
            "podopsy profile -n shop -l app=web",
            "podopsy profile deploy/cart pod/db-0 -o a.svg",
            "podopsy oom shop/deploy/cart sts/db -A",
            "podopsy inspect cronjob/nightly -n shop",
            "podopsy oom",
            "podopsy oom --since 1h -n shop -l app=web -o yaml --state-dir /tmp/x",
            "podopsy oom show 3f2a-28908 -o json --state-dir /tmp/x",
            "podopsy oom --since 7d",
            "podopsy oom --each --most 1000",
            "podopsy events --since 2w",
            "podopsy profile --since 1d12h shop/cart -o x.svg",
            "podopsy oom --silent --since 1h --socket /run/podopsy/agent.sock",
            "podopsy events",
            "podopsy events --since 10m -n shop -l app=web --kind oom.kill --kind dns.failure -o json shop/cart",
            "podopsy inspect pid:1 -o json --cri-socket unix:///run/x.sock -v",
            "podopsy --node n1 doctor",
            "podopsy doctor -o jsonpath={.checks[*].name}",
            "podopsy inspect deploy/cart -o jsonpath={.items[*].pod.name}",
            "podopsy net shop/cart -o yaml",
            "podopsy net -n shop cart -o json",
            "podopsy enter shop/cart -- ss -tlnp",
            "podopsy enter cart --ns net,pid -n shop -- ps -ef -o json",
            "podopsy core pid:42 -w core.zst --exclude-file-backed --stream",
        ] {
            read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "podopsy profile",
            "podopsy profile -a finance/pricing",
            "podopsy profile -a -F 0",
            "podopsy profile -a --since 1h -d 10s",
            "podopsy profile -a -F 1001",
            "podopsy profile -a -d 30",
            "podopsy profile -a -o x.txt --format text",
            "podopsy profile -a --format svg",
            "podopsy profile diff a.pb.gz",
            "podopsy profile -a diff a.pb.gz b.pb.gz",
            "podopsy inspect pid:0",
            "podopsy watch a//b",
            "podopsy profile -a -n shop",
            "podopsy events -A -n shop",
            "podopsy inspect",
            "podopsy dns --all --failed",
            "podopsy dns --for 30",
            "podopsy dns --dns-hook bpf",
            "podopsy watch --count 0",
            "podopsy watch dns --slow-over 200",
            "podopsy watch dns --dns-port 0",
            "podopsy watch dns --dns-port 1 --dns-port 2 --dns-port 3 --dns-port 4 --dns-port 5",
            "podopsy dns --dns-port 1 --dns-port 2 --dns-port 3 --dns-port 4 --dns-port 5",
            "podopsy dns --doh-resolver dns.google",
            "podopsy pods -l =",
            "podopsy oom -n x show 3f2a-7",
            "podopsy oom --since 1",
            "podopsy oom --most 0",
            "podopsy events --kind oom",
            "podopsy events --most 0",
            "podopsy events -o xml",
            "podopsy pods --sort-by [",
            "podopsy oom -o jsonpath={",
            "podopsy net",
            "podopsy enter cart",
            "podopsy enter cart --ns user -- id",
            "podopsy core cart",
        ] {
            let refused = read(line).err().map(|error| error.exit_code());
            assert_eq!(refused, Some(2), "{line}");
        }
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        fn check(command: &clap::Command, path: &str) {
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let path = format!("{path} {}", command.get_name());
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                let examples: Vec<&str> =
                    help.lines().filter_map(|line| line.strip_prefix("  ")?.split("  ").next()).collect();
                assert!(examples.len() > 1, "{path} has {examples:?}");
                for example in examples {
                    assert!(example.starts_with(&path), "{example} stands below {path}");
                    read(example).unwrap_or_else(|error| panic!("{example}: {error}"));
                }
                check(command, &path);
            }
        }
        check(&Cli::command(), "podopsy");
    }

    #[test]
    fn a_socket_may_be_a_url() {
        let cli = read("podopsy pods --cri-socket unix:///run/crio/crio.sock").unwrap();
        assert_eq!(cli.global.cri_socket, Some("/run/crio/crio.sock".into()));
    }
}
