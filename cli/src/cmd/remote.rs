//! Commands of kubectl's plugin that podopsy carries out on the pod's own node: `dns`, `inspect`, `timeline`, `profile` and `mcp`.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use podopsy_fleet::Agent;
use podopsy_fleet::kubectl::read_bounded;
use podopsy_model::profile::{Profile, Sampling};
use podopsy_model::text;
use podopsy_profiles::import;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::Child;

use crate::args::{DnsArgs, InspectArgs, ProfileArgs, ProfileCommand, TimelineArgs};
use crate::context::Context;
use crate::exit::{AlreadyPrinted, CommandOutcome};
use crate::fleet::ClusterAgents;
use crate::output;
use crate::render::top;
use crate::terminal::note;

/// The largest profile that a node may send.
const PROFILE_BYTES_MAX: usize = 256 << 20;
/// The longest line. The end of a longer one is left out.
const LINE_BYTES_MAX: u64 = 1 << 20;

pub async fn dns(
    fleet: &ClusterAgents,
    args: &DnsArgs,
    options: Vec<OsString>,
) -> anyhow::Result<CommandOutcome> {
    let (agent, targets) = fleet.locate(&args.selection.targets).await?;
    pass_through(fleet, agent, &words(fleet, "dns", &targets, options)).await
}

pub async fn inspect(
    fleet: &ClusterAgents,
    args: &InspectArgs,
    options: Vec<OsString>,
) -> anyhow::Result<CommandOutcome> {
    let (agent, targets) = fleet.locate(&args.targets).await?;
    pass_through(fleet, agent, &words(fleet, "inspect", &targets, options)).await
}

/// The pods' node has their history.
pub async fn timeline(
    fleet: &ClusterAgents,
    args: &TimelineArgs,
    options: Vec<OsString>,
) -> anyhow::Result<CommandOutcome> {
    let (agent, targets) = fleet.locate(&args.targets).await?;
    pass_through(fleet, agent, &words(fleet, "timeline", &targets, options)).await
}

/// kubectl takes this process's place, so that signals and the ends of streams reach it, and podopsy behind it.
pub async fn mcp(fleet: &ClusterAgents) -> anyhow::Result<CommandOutcome> {
    let (agent, _) = fleet.locate(&[]).await?;
    let mut command = fleet.kubectl()?.exec_command(agent, &["mcp".into()], true);
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    Err(command.as_std_mut().exec()).context("cannot start kubectl")
}

/// Samples on the node, and writes the files here.
pub async fn profile(
    context: &Context,
    fleet: &ClusterAgents,
    args: &ProfileArgs,
    options: Vec<OsString>,
) -> anyhow::Result<CommandOutcome> {
    if let Some(ProfileCommand::Diff(args)) = &args.diff {
        return super::diff::run(context, args);
    }
    let pending = output::prepare(args.outputs()?)?;
    let is_to_stdout = pending.has_stdout();
    let (agent, targets) = fleet.locate(&args.targets).await?;
    let (mut words, shown) = match args.all {
        true => (words_of_all("profile", options), "the whole node".to_owned()),
        false if targets.is_empty() => {
            (words(fleet, "profile", &targets, options), "the selected pods".to_owned())
        }
        false => (words(fleet, "profile", &targets, options), targets.join(", ")),
    };
    words.extend(["--output=-".into(), "--format=pprof".into()]);
    note(&format!("profiling {} on {}", text::escape(&shown), agent.node));
    let mut child = start(fleet, agent, &words)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (packed, remote) = tokio::join!(read_bounded(stdout, PROFILE_BYTES_MAX), note_lines(stderr));
    let packed = packed.map_err(|error| anyhow::anyhow!("the profile of {}: {error}", agent.node))?;
    let outcome = end(&mut child, agent, remote).await?;
    if packed.is_empty() {
        return Ok(outcome);
    }
    let profile = read_profile(&packed, agent, args)?;
    let written = output::report(pending.finish_sent(&profile, &packed));
    if !is_to_stdout {
        top::print(&mut io::stdout().lock(), context.stdout, &profile, args.top, args.top_format())?;
    }
    written.map(|()| outcome)
}

fn read_profile(packed: &[u8], agent: &Agent, args: &ProfileArgs) -> anyhow::Result<Profile> {
    let value = if args.growth { "page_faults" } else { "samples" };
    let read =
        import::pprof::read(packed, Some(value)).with_context(|| format!("the profile of {}", agent.node))?;
    let sampling = match args.since {
        Some(_) => Sampling::Cpu { frequency_hz: args.frequency },
        None => args.sampling(),
    };
    let duration = args.since.unwrap_or(args.duration);
    Ok(read.to_profile(Profile::empty(jiff::Timestamp::now(), duration, sampling, &agent.node)))
}

fn words_of_all(command: &str, options: Vec<OsString>) -> Vec<OsString> {
    let words: [OsString; 2] = [command.into(), "--all".into()];
    words.into_iter().chain(options).collect()
}

/// The call of podopsy on the node. Without targets, it selects the pods there.
fn words(fleet: &ClusterAgents, command: &str, targets: &[String], options: Vec<OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![command.into()];
    words.extend(targets.iter().map(Into::into));
    words.extend(options);
    if targets.is_empty() {
        let namespace = fleet.namespace.as_ref();
        words.push(namespace.map_or("--all-namespaces".into(), |name| format!("--namespace={name}").into()));
        words.extend(fleet.selector.as_ref().map(|selector| format!("--selector={selector}").into()));
    }
    words
}

fn start(fleet: &ClusterAgents, agent: &Agent, words: &[OsString]) -> anyhow::Result<Child> {
    fleet.kubectl()?.exec_command(agent, words, false).spawn().context("cannot start kubectl")
}

/// Runs podopsy on the node, and prints what it prints, line by line.
async fn pass_through(
    fleet: &ClusterAgents,
    agent: &Agent,
    words: &[OsString],
) -> anyhow::Result<CommandOutcome> {
    let mut child = start(fleet, agent, words)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let print = async {
        let mut lines = Lines::new(stdout);
        while let Some(line) = lines.next().await {
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        io::Result::Ok(())
    };
    let (printed, remote) = tokio::join!(print, note_lines(stderr));
    printed?;
    end(&mut child, agent, remote).await
}

/// Ends with podopsy's exit code on the node. Its reason is on stderr already.
async fn end(child: &mut Child, agent: &Agent, remote: Option<u8>) -> anyhow::Result<CommandOutcome> {
    match (child.wait().await?.code(), remote) {
        (Some(0), _) => Ok(CommandOutcome::Success),
        (Some(_), Some(code)) => Err(AlreadyPrinted(code).into()),
        (Some(_), None) => bail!("kubectl cannot run podopsy on {}", agent.node),
        (None, _) => bail!("kubectl was ended by a signal"),
    }
}

/// What kubectl writes if the command that it ran has failed. Without it, kubectl has failed itself.
const COMMAND_ENDED: &str = "command terminated with exit code ";

/// Prints what the node's podopsy writes to stderr, without what kubectl adds: podopsy's exit code, which is returned.
async fn note_lines(stderr: Option<impl AsyncRead + Unpin>) -> Option<u8> {
    let mut lines = Lines::new(stderr);
    let mut code = None;
    while let Some(line) = lines.next().await {
        match line.strip_prefix(COMMAND_ENDED) {
            Some(number) => code = number.trim().parse().ok(),
            None if line.is_empty() => {}
            None => note(&line),
        }
    }
    code
}

/// Lines of a node, safe to print and bounded.
struct Lines<R>(Option<BufReader<R>>);

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: Option<R>) -> Lines<R> {
        Lines(stream.map(BufReader::new))
    }

    async fn next(&mut self) -> Option<String> {
        let stream = self.0.as_mut()?;
        let mut line = Vec::new();
        let read = stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await.ok()?;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        (read > 0).then(|| text::visible(&String::from_utf8_lossy(&line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_of_a_node_are_escaped_and_bounded() {
        let long = vec![b'x'; LINE_BYTES_MAX as usize + 5];
        let input = [b"a\x1b[2J\xff\nb\n".as_slice(), &long].concat();
        let mut lines = Lines::new(Some(&input[..]));
        assert_eq!(lines.next().await.as_deref(), Some("a\\x1b[2J\u{fffd}"));
        assert_eq!(lines.next().await.as_deref(), Some("b"));
        assert_eq!(lines.next().await.map(|line| line.len()), Some(LINE_BYTES_MAX as usize));
        assert_eq!(lines.next().await.as_deref(), Some("xxxxx"));
        assert_eq!(lines.next().await, None);
    }
}
