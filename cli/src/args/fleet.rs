//! The command line of the kubectl plugin. Its commands have the arguments of podopsy's own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{
    ArgAction, ArgMatches, Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
};
use podopsy_model::duration;

use super::{
    DnsArgs, EventsArgs, InspectArgs, OomArgs, PodsArgs, ProfileArgs, RestartsArgs, SheetArgs, TimelineArgs,
    TopArgs, WatchArgs, check_dns_options, check_oom_target,
};
use crate::selector::Selector;
use crate::terminal::ColourChoice;

const AFTER_HELP: &str = "\
Examples:
  kubectl podopsy oom -A --since 1h              OOM kills of the last hour on all nodes
  kubectl podopsy oom -n shop -l app=cart        those of some pods
  kubectl podopsy oom show 3f2a-28908            the autopsy of one of them
  kubectl podopsy events deploy/cart             what happened to the pods of a Deployment, also to those that are gone
  kubectl podopsy events -A --kind dns.failure   failed DNS lookups
  kubectl podopsy dns cart-7d9f --for 30s        live lookups of a pod, recorded on its node
  kubectl podopsy profile deploy/cart -o cart.svg   CPU time of a pod, sampled on its node; the file is written here
  kubectl podopsy restarts -A                    containers that restarted: Kubernetes' reason, and the kernel's
  kubectl podopsy timeline deploy/cart           starts, kills, memory and failed lookups of some pods, in order
  kubectl podopsy top -A                         what each container uses, live
  kubectl podopsy pods -A                        pods with restarts, limits and usage, by node
  kubectl podopsy mcp --node n1                  serves a node's history to an assistant
  kubectl podopsy doctor --all-nodes             what works on each node

TARGET is a pod or the beginning of its name, namespace/pod[/container], deploy/NAME, sts/NAME, ds/NAME, rs/NAME,
job/NAME, cronjob/NAME, or one of these after namespace/.

Exit codes:
  0  done (also after Ctrl-C, and when the reader of a pipe has closed it)
  1  nothing was found
  2  wrong usage, also a TARGET that several pods match
  3  something failed, or a node did not answer (it is named on stderr)
  4  a permission is missing";

/// Ask the agents of all nodes what happened to the cluster's pods
///
/// Reaches the agents by kubectl exec, with your credentials: RBAC decides. Nodes that do not answer are named on stderr.
#[derive(Debug, Parser)]
#[command(name = "kubectl-podopsy", bin_name = "kubectl podopsy", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct FleetCli {
    #[command(flatten)]
    pub options: FleetOptions,
    #[command(subcommand)]
    pub command: FleetCommand,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster options")]
pub struct FleetOptions {
    /// The kubeconfig's context
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// The kubeconfig file
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Only pods in this namespace [default: the context's]
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Pods in all namespaces
    #[arg(short = 'A', long, global = true)]
    pub all_namespaces: bool,

    /// Only pods with these labels: key=value, key!=value, key or !key, with commas between
    #[arg(short = 'l', long, global = true, value_name = "LABELS")]
    pub selector: Option<Selector>,

    /// Only this node; may be repeated
    #[arg(long = "node", global = true, value_name = "NAME")]
    pub nodes: Vec<String>,

    /// The namespace of the agents
    #[arg(long, global = true, value_name = "NAMESPACE", default_value = "podopsy")]
    pub agent_namespace: String,

    /// How long one agent may take to answer
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    pub timeout: Duration,

    /// Instead of kubectl: a folder with the agents' sockets, each named NODE.sock
    #[arg(long, global = true, value_name = "FOLDER", hide_short_help = true)]
    pub sockets: Option<PathBuf>,

    /// Colours: auto on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = ColourChoice::Auto)]
    pub color: ColourChoice,

    /// Log to stderr what podopsy does; -vv and -vvv log more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    Oom(OomArgs),
    Events(EventsArgs),
    Watch(WatchArgs),
    Dns(DnsArgs),
    Profile(ProfileArgs),
    Pods(PodsArgs),
    Timeline(TimelineArgs),
    Top(TopArgs),
    Restarts(RestartsArgs),
    Inspect(InspectArgs),
    Doctor(FleetDoctorArgs),
    Mcp(FleetMcpArgs),
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete(CompleteArgs),
}

/// Check what works on each node, with the command or manifest line that fixes the rest
///
/// Exits 0 if nothing essential is missing on any node, 3 if something is.
#[derive(Debug, Args)]
pub struct FleetDoctorArgs {
    /// All nodes; without it, --node names some
    #[arg(long)]
    pub all_nodes: bool,

    #[command(flatten)]
    pub sheet: SheetArgs,
}

/// Serve what a node's agent has recorded to an assistant, by the Model Context Protocol over stdin and stdout
///
/// Runs `podopsy mcp` in the agent's pod on that node, which --node names, where there are several.
#[derive(Debug, Args)]
pub struct FleetMcpArgs {}

/// What a shell, or kubectl for its plugin, asks for candidates
#[derive(Debug, Args)]
pub struct CompleteArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// Options that have no meaning for another machine: they find an agent on this one.
const OF_THIS_MACHINE: [&str; 2] = ["socket", "state_dir"];
/// Arguments that the plugin decides about when it calls podopsy on a node.
const OF_THE_PLUGIN: [&str; 7] =
    ["all", "files", "outputs", "format", "namespace", "all_namespaces", "selector"];

/// The definition, without what only podopsy on a node has.
pub fn command() -> Command {
    let hide = |mut command: Command| {
        if let Some(help) = command.get_after_help().map(ToString::to_string) {
            command = command.after_help(help.replace("  podopsy ", "  kubectl podopsy "));
        }
        OF_THIS_MACHINE.into_iter().fold(command, |command, id| {
            let has = command.get_arguments().any(|arg| arg.get_id() == id);
            if has { command.mut_arg(id, |arg| arg.hide(true).hide_env(true)) } else { command }
        })
    };
    FleetCli::command().mut_subcommands(move |command| hide(command.mut_subcommands(hide)))
}

/// Parses the plugin's arguments. Also returns the options that podopsy on a node gets when the command runs there.
pub fn read(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<(FleetCli, Vec<OsString>), clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(args)?;
    let cli = FleetCli::from_arg_matches(&matches)?;
    match &cli.command {
        FleetCommand::Watch(args) => check_dns_options(&args.dns_ports, &args.doh_resolvers)?,
        FleetCommand::Dns(args) => check_dns_options(&args.dns_ports, &args.doh_resolvers)?,
        FleetCommand::Oom(args) => check_oom_target(args)?,
        _ => {}
    }
    let forwarded = matches
        .subcommand()
        .and_then(|(name, matches)| Some(forwarded(command.find_subcommand(name)?, matches)));
    Ok((cli, forwarded.unwrap_or_default()))
}

/// The options of a subcommand as they were given: not its defaults, and not what the plugin decides about.
fn forwarded(command: &Command, matches: &ArgMatches) -> Vec<OsString> {
    use clap::parser::ValueSource;
    let mut words = Vec::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_global_set()) {
        let id = arg.get_id().as_str();
        let is_given = matches.value_source(id) == Some(ValueSource::CommandLine);
        let Some(long) = arg.get_long() else { continue };
        if !is_given || OF_THE_PLUGIN.contains(&id) || OF_THIS_MACHINE.contains(&id) {
            continue;
        }
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            words.push(format!("--{long}").into());
            continue;
        }
        for value in matches.get_raw(id).into_iter().flatten() {
            let mut word = OsString::from(format!("--{long}="));
            word.push(value);
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(FleetCli, Vec<OsString>), clap::Error> {
        super::read(line.split(' '))
    }

    #[test]
    fn the_definition_of_the_arguments_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_namespace_and_labels_may_stand_before_or_after_the_command() {
        for line in ["kubectl-podopsy -n shop -l app=a oom", "kubectl-podopsy oom -n shop -l app=a"] {
            let (cli, _) = read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(cli.options.namespace.as_deref(), Some("shop"), "{line}");
            assert_eq!(cli.options.selector, Some("app=a".parse().unwrap()), "{line}");
        }
        let (cli, _) = read("kubectl-podopsy --context c pods -A --node n1 --node n2").unwrap();
        assert!(cli.options.all_namespaces && cli.options.nodes == ["n1", "n2"]);
        assert_eq!(read("kubectl-podopsy oom --node").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn options_are_passed_on_as_they_were_given() {
        let (_, words) = read("kubectl-podopsy -n x profile deploy/web -d 10s -F 49 -o a.svg").unwrap();
        assert_eq!(words, ["--duration=10s", "--frequency=49"]);
        let (_, words) =
            read("kubectl-podopsy dns web --failed --dns-port 53 --dns-port 5353 --timeout 5s").unwrap();
        assert_eq!(words, ["--failed", "--dns-port=53", "--dns-port=5353"]);
    }

    #[test]
    fn options_of_the_agents_machine_are_not_in_the_help() {
        let mut command = command();
        let help = command.find_subcommand_mut("events").unwrap().render_long_help().to_string();
        assert!(!help.contains("--state-dir <DIR>") && help.contains("--since"), "{help}");
        assert!(help.contains("  kubectl podopsy events deploy/cart"), "{help}");
    }
}
