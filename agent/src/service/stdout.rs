//! Writes events to stdout, one JSON line each, from a separate thread: the reader may stop reading, and a disk may be full.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::always_on::LossCounters;

/// The bound on lines that wait to be written. Lines that do not fit are dropped and counted.
const MAX_WAITING_BYTES: usize = 8 << 20;
/// Between two checks whether all lines are written.
const FINISHED_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The queue of lines, and the thread that writes them.
pub struct StdoutWriter {
    lines: Sender<String>,
    /// The number of bytes in the queue.
    waiting: Arc<AtomicUsize>,
    losses: LossCounters,
    writer: JoinHandle<()>,
}

/// Loss counter: the reader of stdout is too slow, or has stopped reading.
const QUEUE_FULL: &str = "stdout_queue_full";
/// Loss counter: a write failed, for example because the reader has closed the pipe.
const NOT_WRITTEN: &str = "stdout_not_written";

impl StdoutWriter {
    pub fn start() -> io::Result<StdoutWriter> {
        StdoutWriter::to(io::stdout())
    }

    fn to(mut out: impl Write + Send + 'static) -> io::Result<StdoutWriter> {
        let (lines, received) = channel();
        let waiting = Arc::<AtomicUsize>::default();
        let losses = LossCounters::default();
        let run = {
            let (waiting, losses) = (waiting.clone(), losses.clone());
            move || write_lines(&mut out, &received, &waiting, &losses)
        };
        let writer = std::thread::Builder::new().name("stdout".into()).spawn(run)?;
        Ok(StdoutWriter { lines, waiting, losses, writer })
    }

    /// Never waits.
    pub fn write_line(&self, line: String) {
        let bytes = line.len() + 1;
        if self.waiting.fetch_add(bytes, Relaxed) + bytes > MAX_WAITING_BYTES {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.losses.add(QUEUE_FULL);
        } else if self.lines.send(line).is_err() {
            self.losses.add(NOT_WRITTEN);
        }
    }

    /// The counters of lines that were not written. They may outlive the writer.
    pub fn losses(&self) -> LossCounters {
        self.losses.clone()
    }

    /// Waits until all lines are written, but not longer than `end`.
    pub async fn close(self, end: Instant) {
        drop(self.lines);
        while !self.writer.is_finished() && Instant::now() < end {
            tokio::time::sleep(FINISHED_CHECK_INTERVAL).await;
        }
    }
}

fn write_lines(out: &mut impl Write, lines: &Receiver<String>, waiting: &AtomicUsize, losses: &LossCounters) {
    let mut is_failing = false;
    while let Ok(mut line) = lines.recv() {
        line.push('\n');
        // Flushed, so that the reader gets each line at once.
        let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        waiting.fetch_sub(line.len(), Relaxed);
        match written {
            Ok(()) => is_failing = false,
            Err(error) => {
                losses.add(NOT_WRITTEN);
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(
                        "cannot write events to stdout: {error}; the store and the exports still get them"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that has stopped reading.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_reader_that_stops_causes_counted_losses_and_no_delay() {
        let (_go_on, wait) = channel();
        let stdout = StdoutWriter::to(Stuck(wait)).unwrap();
        let began = Instant::now();
        let line = "x".repeat((1 << 20) - 1);
        (0..20).for_each(|_| stdout.write_line(line.clone()));
        assert_eq!(stdout.losses().snapshot(), [("stdout_queue_full".to_owned(), 12)].into());
        stdout.close(Instant::now() + Duration::from_millis(50)).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn failed_writes_are_counted_and_waiting_lines_are_written_when_closing() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let stdout = StdoutWriter::to(full).unwrap();
        let losses = stdout.losses();
        stdout.write_line("{}".into());
        stdout.write_line("{}".into());
        stdout.close(Instant::now() + Duration::from_secs(10)).await;
        assert_eq!(losses.snapshot(), [("stdout_not_written".to_owned(), 2)].into());

        let (mut read, write) = io::pipe().unwrap();
        let stdout = StdoutWriter::to(write).unwrap();
        (0..100).for_each(|n| stdout.write_line(n.to_string()));
        stdout.close(Instant::now() + Duration::from_secs(10)).await;
        let mut all = String::new();
        io::Read::read_to_string(&mut read, &mut all).unwrap();
        assert_eq!(all.lines().last(), Some("99"));
    }
}
