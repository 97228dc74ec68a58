//! The screen: keys, rows that follow, and a flame graph that follows.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use podopsy_model::profile::Profile;
use podopsy_top::{App, Input, Request, RowKey, Screen, next_input};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::pages::FlameFeed;
use super::source::Source;
use crate::args::TopArgs;
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::signals;

/// How often the terminal is asked for keys.
const KEYS_EVERY: Duration = Duration::from_millis(200);

/// The screen, until q.
pub async fn run(context: &Context, args: &TopArgs, source: &mut Source) -> anyhow::Result<CommandOutcome> {
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
async fn next_profile(feed: &mut Option<FlameFeed>) -> Option<anyhow::Result<Profile>> {
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
            source.go_live();
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
