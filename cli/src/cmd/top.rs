//! `podopsy top`: what the containers use, on a screen that follows, or as tables.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use podopsy_client::AgentClient;
use podopsy_top::{App, Input, Request, RowKey, Screen, Snapshot, by_pod, next_input, sort};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::watch::reader_is_gone;
use crate::args::{OutputFormat, TopArgs};
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::fleet::ClusterAgents;
use crate::render;
use crate::render::list::{self, TableStyle};
use crate::selection::Selection;
use crate::terminal::note;
use crate::top::live::LiveSource;
use crate::top::pages::{self, FlameFeed};
use crate::top::past::PastSource;
use crate::top::remote::RemoteSource;
use crate::{history, privilege, signals};

/// How long the first reading of CPU time takes.
const FIRST: Duration = Duration::from_secs(1);
/// How often the terminal is asked for keys.
const KEYS_EVERY: Duration = Duration::from_millis(200);

pub async fn run(context: &Context, args: TopArgs) -> anyhow::Result<CommandOutcome> {
    let mut source = Source::start(context, &args).await?;
    if args.batch || !context.stdout.is_terminal() || args.output.output != OutputFormat::Table {
        return batch(context, &args, &mut source).await;
    }
    let outcome = screen(context, &args, &mut source).await;
    // Warnings came while the screen was open.
    crate::log::release_held("");
    outcome
}

/// Where the rows come from.
enum Source {
    Node(Box<NodeSource>),
    Fleet(Arc<ClusterAgents>, Box<RemoteSource>),
}

/// This node, now or at a time of its agent's history.
struct NodeSource {
    context: Context,
    selection: Selection,
    agent: Option<AgentClient>,
    /// Started when it is first shown.
    live: Option<LiveSource>,
    past: Option<PastSource>,
    /// None: now.
    at: Option<Timestamp>,
}

impl Source {
    async fn start(context: &Context, args: &TopArgs) -> anyhow::Result<Source> {
        if let Some(fleet) = &context.fleet {
            if args.at.is_some() {
                let reason = "top: --at shows the history of one node: run podopsy top --at there";
                return Err(Refusal(reason.to_owned()).into());
            }
            return Ok(Source::Fleet(fleet.clone(), Box::new(RemoteSource::start(fleet, args)?)));
        }
        let selection = Selection::new(&args.selection.targets, &args.selection.pods)?;
        let agent = match args.at {
            Some(_) => Some(history::require_agent(&args.history).await?),
            None => history::agent(&args.history).await?,
        };
        let past = agent.clone().map(|agent| PastSource::new(agent, selection.clone()));
        let context = context.clone();
        let mut node = NodeSource { context, selection, agent, live: None, past, at: args.at };
        if args.at.is_none() {
            node.start_live().await?;
        }
        Ok(Source::Node(Box::new(node)))
    }

    async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        match self {
            Source::Node(node) => node.snapshot().await,
            Source::Fleet(_, remote) => Ok(remote.snapshot().await),
        }
    }

    fn is_live(&self) -> bool {
        match self {
            Source::Node(node) => node.at.is_none(),
            Source::Fleet(..) => true,
        }
    }

    /// Whether there can be no more rows, as far as it is known.
    fn is_over(&self) -> bool {
        matches!(self, Source::Fleet(_, remote) if remote.is_over())
    }

    fn move_by(&mut self, step: SignedDuration) -> anyhow::Result<()> {
        match self {
            Source::Node(node) => node.move_by(step),
            Source::Fleet(..) => anyhow::bail!("the history is shown on a node: podopsy top --at there"),
        }
    }

    fn to_now(&mut self) {
        if let Source::Node(node) = self {
            node.at = None;
        }
    }

    async fn timeline(&self, key: &RowKey) -> anyhow::Result<Vec<String>> {
        match self {
            Source::Node(node) => {
                let until = node.at.unwrap_or_else(Timestamp::now);
                pages::timeline(&node.context, node.agent()?, key, until).await
            }
            Source::Fleet(fleet, _) => {
                pages::of_node(fleet, key, &["timeline", &key.target(), "--since=24h"]).await
            }
        }
    }

    async fn autopsy(&self, key: &RowKey) -> anyhow::Result<Vec<String>> {
        match self {
            Source::Node(node) => {
                let until = node.at.unwrap_or_else(Timestamp::now);
                pages::autopsy(&node.context, node.agent()?, key, until).await
            }
            Source::Fleet(fleet, _) => pages::autopsy_of_node(fleet, key).await,
        }
    }

    fn flame(&self, key: RowKey) -> anyhow::Result<FlameFeed> {
        match self {
            Source::Node(node) => {
                let live = node.live.as_ref().filter(|_| node.at.is_none());
                let live = live.context("a flame graph is of now: n goes back to it")?;
                FlameFeed::of_pods(&node.context, live.pods(), key)
            }
            Source::Fleet(fleet, _) => Ok(FlameFeed::of_fleet(fleet, key)),
        }
    }
}

impl NodeSource {
    async fn start_live(&mut self) -> anyhow::Result<()> {
        privilege::require_runtime("top", self.context.global.cri_socket.as_deref())?;
        let live = LiveSource::start(&self.context, self.selection.clone(), self.agent.clone()).await?;
        self.live = Some(live);
        sleep(FIRST).await;
        Ok(())
    }

    async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        if let (Some(at), Some(past)) = (self.at, &mut self.past) {
            return past.snapshot(&self.context, at).await;
        }
        if self.live.is_none() {
            self.start_live().await?;
        }
        let live = self.live.as_mut().context("the node cannot be read")?;
        Ok(live.snapshot().await)
    }

    fn move_by(&mut self, step: SignedDuration) -> anyhow::Result<()> {
        self.agent()?;
        let now = Timestamp::now();
        let to = self.at.unwrap_or(now).checked_add(step)?;
        self.at = (to < now).then_some(to);
        Ok(())
    }

    fn agent(&self) -> anyhow::Result<&AgentClient> {
        self.agent.as_ref().context("no agent answers: start podopsy-agent with --state-dir")
    }
}

/// Prints tables, one after the other.
async fn batch(context: &Context, args: &TopArgs, source: &mut Source) -> anyhow::Result<CommandOutcome> {
    let mut stop = std::pin::pin!(signals::stop()?);
    let mut printed = 0;
    loop {
        let snapshot = tokio::select! {
            snapshot = source.snapshot() => snapshot?,
            () = &mut stop => return Ok(CommandOutcome::Success),
        };
        let is_last = args.count != 0 && printed + 1 >= args.count;
        let is_empty = snapshot.rows.is_empty();
        print(context, args, snapshot)?;
        printed += 1;
        if is_last || !source.is_live() {
            return Ok(if is_empty { CommandOutcome::NothingFound } else { CommandOutcome::Success });
        }
        tokio::select! {
            () = sleep(args.interval) => {}
            () = &mut stop => return Ok(CommandOutcome::Success),
        }
        if reader_is_gone() || source.is_over() {
            return Ok(CommandOutcome::Success);
        }
    }
}

fn print(context: &Context, args: &TopArgs, mut snapshot: Snapshot) -> anyhow::Result<()> {
    if args.by_pod {
        snapshot.rows = by_pod(&snapshot.rows);
    }
    sort(&mut snapshot.rows, args.sort.0, false);
    list::sort(&mut snapshot.rows, args.output.sort_by.as_ref())?;
    let mut out = io::stdout().lock();
    let name = |row: &podopsy_top::ContainerRow| Some(row.key().target());
    if list::print(&mut out, context.stdout, &args.output, &snapshot.rows, name)? {
        return Ok(out.flush()?);
    }
    match args.output.output {
        OutputFormat::Json => {
            serde_json::to_writer(&mut out, &snapshot)?;
            writeln!(out)?;
        }
        OutputFormat::Yaml => render::yaml(&mut out, &snapshot)?,
        _ => {
            if !snapshot.rows.is_empty() {
                render::usage::print(
                    &mut out,
                    TableStyle::new(context.stdout, &args.output),
                    &snapshot.rows,
                )?;
            }
            snapshot.notes.iter().for_each(|line| note(line));
            if snapshot.rows.is_empty() {
                note("no containers match");
            }
        }
    }
    Ok(out.flush()?)
}

/// The screen, until q.
async fn screen(context: &Context, args: &TopArgs, source: &mut Source) -> anyhow::Result<CommandOutcome> {
    let mut app = App::new(args.sort.0, args.by_pod, context.stdout.colour);
    // Before the screen opens: an error is a line like that of every command.
    app.set_snapshot(source.snapshot().await?);
    let mut stop = std::pin::pin!(signals::stop()?);
    let mut screen = Screen::open().context("cannot use this terminal; -b prints tables")?;
    let mut inputs = read_inputs();
    let mut feed: Option<FlameFeed> = None;
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.draw(&mut app)?;
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Ok(Input::Key(key))) => {
                    let Some(request) = app.handle(key) else { continue };
                    if request == Request::Quit {
                        return Ok(CommandOutcome::Success);
                    }
                    if let Err(error) = act(&mut app, source, &mut feed, request).await {
                        app.show_message(format!("{error:#}"));
                    }
                }
                Some(Ok(Input::Resized)) => {}
                Some(Err(error)) => return Err(error).context("cannot read the terminal"),
                None => return Ok(CommandOutcome::Success),
            },
            _ = ticks.tick(), if app.is_table() && source.is_live() => match source.snapshot().await {
                Ok(snapshot) => app.set_snapshot(snapshot),
                Err(error) => app.show_message(format!("{error:#}")),
            },
            profile = next_profile(&mut feed) => match (profile, &feed) {
                (Some(Ok(profile)), Some(feed)) => app.show_profile(&title(&feed.key), &profile),
                (Some(Err(error)), _) => {
                    feed = None;
                    app.show_message(format!("{error:#}"));
                }
                _ => feed = None,
            },
            () = &mut stop => return Ok(CommandOutcome::Success),
        }
    }
}

fn title(key: &RowKey) -> String {
    format!("{}: CPU of the last 30 s at 99 Hz", key.target())
}

/// The next profile of the flame graph; never, if none is shown.
async fn next_profile(
    feed: &mut Option<FlameFeed>,
) -> Option<anyhow::Result<podopsy_model::profile::Profile>> {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}

/// Does what a key asks for.
async fn act(
    app: &mut App,
    source: &mut Source,
    feed: &mut Option<FlameFeed>,
    request: Request,
) -> anyhow::Result<()> {
    match request {
        Request::Quit => {}
        Request::Close => *feed = None,
        Request::Timeline(key) => {
            app.show_text(&format!("timeline of {}", key.target()), source.timeline(&key).await?);
        }
        Request::Autopsy(key) => {
            app.show_text(&format!("last kill of {}", key.target()), source.autopsy(&key).await?);
        }
        Request::Flame(key) => {
            app.show_message(format!("sampling {}", key.target()));
            *feed = Some(source.flame(key)?);
        }
        Request::Move(step) => {
            source.move_by(step)?;
            app.set_snapshot(source.snapshot().await?);
        }
        Request::Now => {
            source.to_now();
            app.set_snapshot(source.snapshot().await?);
        }
    }
    Ok(())
}

/// Reads the terminal on a thread of its own, which ends with the receiver.
fn read_inputs() -> mpsc::Receiver<io::Result<Input>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let input = match next_input(KEYS_EVERY) {
                Ok(None) => continue,
                Ok(Some(input)) => Ok(input),
                Err(error) => Err(error),
            };
            let has_failed = input.is_err();
            if sender.blocking_send(input).is_err() || has_failed {
                return;
            }
        }
    });
    receiver
}
