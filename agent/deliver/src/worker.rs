//! One destination's loop: batch, send, try again.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::patience;
use super::progress::Progress;
use super::queue::{Queue, Weigh};
use super::tally::{Fate, Tally};
use super::{Format, Request, Route, trust};
use podopsy_model::text;

/// Bytes of an answer that are looked at.
pub const ANSWER: usize = 64 << 10;
/// Of an answer, in the log.
pub const SHOWN: usize = 200;

pub struct Worker<F: Format> {
    pub name: &'static str,
    pub route: Arc<Route>,
    /// Where another comes from.
    pub routes: watch::Receiver<Arc<Route>>,
    pub format: Arc<F>,
    pub queue: Arc<Queue<F::Item>>,
    pub tally: Arc<Tally>,
    pub progress: Arc<Progress>,
    pub closed: watch::Receiver<bool>,
}

/// What one request came to.
pub enum Answer {
    /// Taken, but for so many.
    Taken(u64),
    /// It never will be.
    Never(String),
    /// Some of it may be; the rest never will.
    Partly(String),
    Later(String, Option<Duration>),
    /// Not this way.
    Otherwise,
}

/// Items that are neither delivered nor given up: abandoned, if the worker ends here.
struct Pending {
    items: u64,
    bytes: u64,
    ids: Vec<i64>,
    tally: Arc<Tally>,
    progress: Arc<Progress>,
}

impl Pending {
    fn settle(&mut self, fate: Fate) {
        // What was abandoned is for the next start.
        if fate != Fate::Abandoned {
            self.progress.settled(std::mem::take(&mut self.ids));
        }
        self.tally.settled(fate, std::mem::take(&mut self.items), std::mem::take(&mut self.bytes));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.settle(Fate::Abandoned);
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
            let settings = &self.route.settings;
            let batch = self.queue.take(settings.batch_items, settings.batch_bytes);
            if !batch.is_empty() {
                self.deliver(batch, &mut troubled).await;
            } else if closing {
                return;
            }
        }
    }

    /// How the destination is reached now.
    async fn route(&mut self) -> Arc<Route> {
        if self.routes.has_changed().unwrap_or(false) {
            self.route = self.routes.borrow_and_update().clone();
        }
        if let Some(renewed) = self.route.renewed(self.name).await {
            self.route = Arc::new(renewed);
        }
        self.route.clone()
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
        let settings = &self.route.settings;
        tokio::select! {
            () = sleep(settings.linger) => {}
            () = self.queue.holds(settings.batch_items, settings.batch_bytes) => {}
            _ = self.closed.changed() => {}
        }
    }

    async fn deliver(&mut self, batch: Vec<F::Item>, troubled: &mut bool) {
        let bytes: usize = batch.iter().map(Weigh::bytes).sum();
        let mut pending = Pending {
            items: batch.len() as u64,
            bytes: bytes as u64,
            ids: batch.iter().filter_map(Weigh::id).collect(),
            tally: self.tally.clone(),
            progress: self.progress.clone(),
        };
        // It may take milliseconds: not among those who must not wait.
        let format = self.format.clone();
        let made = tokio::task::spawn_blocking(move || format.request(&batch)).await;
        let mut request = match made.map_err(anyhow::Error::from).flatten() {
            Ok(request) => request,
            Err(error) => return self.refused(&mut pending, &format!("{error:#}"), troubled),
        };
        let begun = Instant::now();
        for attempt in 0.. {
            let route = self.route().await;
            match self.send(&route, &request).await {
                Answer::Taken(refused) => {
                    let refused = refused.min(pending.items);
                    self.tally.settled(Fate::Refused, refused, 0);
                    pending.items -= refused;
                    pending.settle(Fate::Delivered);
                    if std::mem::take(troubled) {
                        tracing::info!(destination = self.name, "delivers again");
                    }
                    return;
                }
                Answer::Otherwise => {
                    let Some((_, other)) = request.otherwise.take() else { continue };
                    request = *other;
                }
                Answer::Never(why) => return self.refused(&mut pending, &why, troubled),
                Answer::Partly(why) => return self.refused_in_part(&mut pending, &why, troubled),
                Answer::Later(why, asked) => {
                    if !std::mem::replace(troubled, true) {
                        tracing::warn!(destination = self.name, "not delivered, tried again: {why}");
                    }
                    // It was tried once more, and nobody waits any longer.
                    if self.closing() {
                        return;
                    }
                    let pause = patience::pause(attempt, asked, fastrand::f64());
                    let over = begun.elapsed() + pause > route.settings.patience;
                    if over {
                        pending.settle(Fate::Expired);
                    }
                    // The next batch is no reason to come before the destination wants us; another destination is.
                    tokio::select! {
                        () = sleep(pause) => {}
                        Ok(()) = self.routes.changed() => self.route = self.routes.borrow().clone(),
                        _ = self.closed.changed() => {}
                    }
                    if over {
                        return;
                    }
                    self.tally.retried();
                }
            }
        }
    }

    fn refused(&self, pending: &mut Pending, why: &str, troubled: &mut bool) {
        let count = pending.items;
        pending.settle(Fate::Refused);
        if !std::mem::replace(troubled, true) {
            tracing::warn!(destination = self.name, "refused for good, {count} items given up: {why}");
        }
    }

    fn refused_in_part(&self, pending: &mut Pending, why: &str, troubled: &mut bool) {
        let count = pending.items;
        // One has no parts.
        if count == 1 {
            return self.refused(pending, why, troubled);
        }
        pending.settle(Fate::RefusedInPart);
        if !std::mem::replace(troubled, true) {
            tracing::warn!(destination = self.name, "of {count} items some, or all, refused for good: {why}");
        }
    }

    async fn send(&self, route: &Route, it: &Request) -> Answer {
        let headers = match route.headers.now().await {
            Ok(headers) => headers,
            Err(error) => return Answer::Later(format!("{error:#}"), None),
        };
        if let Some(grpc) = &route.grpc {
            let called = grpc.call(headers, it.body.clone()).await;
            return called.map_or_else(|answer| answer, |said| Answer::Taken(self.format.refused(&said)));
        }
        let url = format!("{}{}", route.settings.url, it.path);
        let request = route.client.request(it.method.clone(), url).headers(headers);
        let request = request.header(CONTENT_TYPE, it.content_type).body(it.body.clone());
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Answer::Later(trust::said(error), None),
        };
        let status = response.status();
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let asked = patience::asked(header);
        let answer = answer(response).await;
        if !status.is_success() {
            self.tally.answered(status.as_u16());
        }
        match status {
            _ if status.is_success() => Answer::Taken(self.format.refused(&answer)),
            _ if it.there_by == Some(status) => Answer::Taken(0),
            _ if it.otherwise.as_ref().is_some_and(|(by, _)| *by == status) => Answer::Otherwise,
            _ if self.format.passes(status) => Answer::Later(self.said(status, &answer), asked),
            _ if self.format.takes_some(status) => Answer::Partly(self.said(status, &answer)),
            _ => Answer::Never(self.said(status, &answer)),
        }
    }

    /// What it answered, and what would mend it.
    fn said(&self, status: StatusCode, answer: &[u8]) -> String {
        let shown = text::escape_bytes(&answer[..answer.len().min(SHOWN)]);
        let ours = "its address and its headers are in the configuration";
        match self.format.mends(status, answer) {
            Some(mends) => format!("{status}: {shown}; {mends}"),
            None if self.format.passes(status) || self.format.takes_some(status) => {
                format!("{status}: {shown}")
            }
            None => format!("{status}: {shown}; {ours}"),
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
