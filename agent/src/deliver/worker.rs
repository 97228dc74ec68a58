//! One destination's loop: batch, send, try again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::patience;
use super::queue::Queue;
use super::{Format, Settings, Tally};
use crate::model::text;

/// Bytes of an answer that are looked at.
const ANSWER: usize = 64 << 10;
/// Of an answer, in the log.
const SHOWN: usize = 200;

pub struct Worker<F: Format> {
    pub name: &'static str,
    pub client: reqwest::Client,
    pub settings: Settings,
    pub format: F,
    pub queue: Arc<Queue<F::Item>>,
    pub tally: Arc<Tally>,
    pub closed: watch::Receiver<bool>,
}

/// What one request came to.
enum Answer {
    /// Taken, but for so many.
    Taken(u64),
    /// It never will be.
    Never(String),
    Later(String, Option<Duration>),
}

/// Items that are neither delivered nor given up: abandoned, if the worker ends here.
struct Pending<'a> {
    left: u64,
    tally: &'a Tally,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.tally.abandoned.fetch_add(self.left, Relaxed);
    }
}

impl<F: Format> Worker<F> {
    pub async fn run(mut self) {
        let mut troubled = false;
        loop {
            let closing = self.closing();
            if !closing {
                self.wait().await;
            }
            let batch = self.queue.take(self.settings.batch_items, self.settings.batch_bytes);
            if !batch.is_empty() {
                self.deliver(batch, &mut troubled).await;
            } else if closing {
                return;
            }
        }
    }

    /// Whoever could ask us to close may be gone, too.
    fn closing(&self) -> bool {
        *self.closed.borrow() || self.closed.has_changed().is_err()
    }

    /// Until a batch is full, or has waited long enough, or there will be no more.
    async fn wait(&mut self) {
        tokio::select! {
            () = self.queue.filled() => {}
            _ = self.closed.changed() => return,
        }
        tokio::select! {
            () = sleep(self.settings.linger) => {}
            () = self.queue.holds(self.settings.batch_bytes) => {}
            _ = self.closed.changed() => {}
        }
    }

    async fn deliver(&mut self, batch: Vec<F::Item>, troubled: &mut bool) {
        let tally = self.tally.clone();
        let mut pending = Pending { left: batch.len() as u64, tally: &tally };
        let body = match self.format.body(&batch) {
            Ok(body) => body,
            Err(error) => return self.refused(&mut pending, &format!("{error:#}"), troubled),
        };
        drop(batch);
        let begun = Instant::now();
        for attempt in 0.. {
            match self.send(body.clone()).await {
                Answer::Taken(refused) => {
                    let refused = refused.min(pending.left);
                    tally.delivered.fetch_add(pending.left - refused, Relaxed);
                    tally.refused.fetch_add(refused, Relaxed);
                    pending.left = 0;
                    if std::mem::take(troubled) {
                        tracing::info!(destination = self.name, "delivers again");
                    }
                    return;
                }
                Answer::Never(why) => return self.refused(&mut pending, &why, troubled),
                Answer::Later(why, asked) => {
                    if !std::mem::replace(troubled, true) {
                        tracing::warn!(destination = self.name, "not delivered, tried again: {why}");
                    }
                    // It was tried once more, and nobody waits any longer.
                    if self.closing() {
                        return;
                    }
                    let pause = patience::pause(attempt, asked, fastrand::f64());
                    if begun.elapsed() + pause > self.settings.patience {
                        tally.expired.fetch_add(std::mem::take(&mut pending.left), Relaxed);
                        return;
                    }
                    tokio::select! {
                        () = sleep(pause) => {}
                        _ = self.closed.changed() => {}
                    }
                    tally.retries.fetch_add(1, Relaxed);
                }
            }
        }
    }

    fn refused(&self, pending: &mut Pending<'_>, why: &str, troubled: &mut bool) {
        let count = std::mem::take(&mut pending.left);
        self.tally.refused.fetch_add(count, Relaxed);
        if !std::mem::replace(troubled, true) {
            tracing::warn!(destination = self.name, "refused for good, {count} items given up: {why}");
        }
    }

    async fn send(&self, body: Vec<u8>) -> Answer {
        let request = self.client.post(&self.settings.url);
        let request = request.header(CONTENT_TYPE, self.format.content_type()).body(body);
        let response = match request.send().await {
            Ok(response) => response,
            // Its own words lack the reason, and have the URL, which may have a password.
            Err(error) => {
                return Answer::Later(format!("{:#}", anyhow::Error::from(error.without_url())), None);
            }
        };
        let status = response.status();
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let asked = patience::asked(header);
        let answer = answer(response).await;
        let said = || {
            let shown = text::escape_bytes(&answer[..answer.len().min(SHOWN)]);
            format!("{status}: {shown}")
        };
        match status {
            _ if status.is_success() => Answer::Taken(self.format.refused(&answer)),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Answer::Later(said(), asked),
            _ if status.is_server_error() => Answer::Later(said(), asked),
            _ => Answer::Never(format!("{}; its address and its headers are in the configuration", said())),
        }
    }
}

/// As much of an answer as comes within the request's time, bounded.
async fn answer(mut response: Response) -> Vec<u8> {
    let mut answer = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = ANSWER - answer.len();
        answer.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if answer.len() == ANSWER {
            break;
        }
    }
    answer
}
