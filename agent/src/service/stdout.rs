//! Events on stdout, a line each: written by a thread of its own, for whoever reads may stop reading, and a disk may be full.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::profiles::NotKept;

/// Lines that wait for the reader, in bytes; what does not fit is counted and left out.
const WAITING: usize = 8 << 20;
/// Between two looks at whether all is written.
const LEFT: Duration = Duration::from_millis(5);

/// The way to stdout.
pub struct Stdout {
    lines: Sender<String>,
    /// Bytes of them.
    waiting: Arc<AtomicUsize>,
    /// `stdout_queue_full`: whoever reads it is too slow, or has stopped. `stdout_not_written`: it cannot be written, as when
    /// nobody reads it any more.
    lost: NotKept,
    writer: JoinHandle<()>,
}

const QUEUE_FULL: &str = "stdout_queue_full";
const NOT_WRITTEN: &str = "stdout_not_written";

impl Stdout {
    pub fn start() -> io::Result<Stdout> {
        Stdout::to(io::stdout())
    }

    fn to(mut out: impl Write + Send + 'static) -> io::Result<Stdout> {
        let (lines, received) = channel();
        let (waiting, lost) = (Arc::<AtomicUsize>::default(), NotKept::default());
        let (of_writer, counts) = (waiting.clone(), lost.clone());
        let run = move || write(&mut out, &received, &of_writer, &counts);
        let writer = std::thread::Builder::new().name("stdout".into()).spawn(run)?;
        Ok(Stdout { lines, waiting, lost, writer })
    }

    /// Never waits.
    pub fn line(&self, line: String) {
        let bytes = line.len() + 1;
        if self.waiting.fetch_add(bytes, Relaxed) + bytes > WAITING {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.lost.add(QUEUE_FULL);
        } else if self.lines.send(line).is_err() {
            self.lost.add(NOT_WRITTEN);
        }
    }

    /// What is not written, counted; it may outlive this.
    pub fn lost(&self) -> NotKept {
        self.lost.clone()
    }

    /// Waits until what is in line is written, or until then.
    pub async fn close(self, end: Instant) {
        drop(self.lines);
        while !self.writer.is_finished() && Instant::now() < end {
            tokio::time::sleep(LEFT).await;
        }
    }
}

fn write(out: &mut impl Write, lines: &Receiver<String>, waiting: &AtomicUsize, lost: &NotKept) {
    let mut said = false;
    while let Ok(mut line) = lines.recv() {
        line.push('\n');
        // Flushed: whoever reads has it at once.
        let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        waiting.fetch_sub(line.len(), Relaxed);
        match written {
            Ok(()) => said = false,
            Err(error) => {
                lost.add(NOT_WRITTEN);
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("events are not written to stdout: {error}; they go everywhere else");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that has stopped.
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
    async fn who_does_not_read_costs_lines_that_are_counted_and_no_time() {
        let (_go_on, wait) = channel();
        let stdout = Stdout::to(Stuck(wait)).unwrap();
        let began = Instant::now();
        let line = "x".repeat((1 << 20) - 1);
        (0..20).for_each(|_| stdout.line(line.clone()));
        assert_eq!(stdout.lost().losses(), [("stdout_queue_full".to_owned(), 12)].into());
        stdout.close(Instant::now() + Duration::from_millis(50)).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_full_disk_is_counted_and_what_was_in_line_is_written_at_the_end() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let stdout = Stdout::to(full).unwrap();
        let lost = stdout.lost();
        stdout.line("{}".into());
        stdout.line("{}".into());
        stdout.close(Instant::now() + Duration::from_secs(10)).await;
        assert_eq!(lost.losses(), [("stdout_not_written".to_owned(), 2)].into());

        let (mut read, write) = io::pipe().unwrap();
        let stdout = Stdout::to(write).unwrap();
        (0..100).for_each(|n| stdout.line(n.to_string()));
        stdout.close(Instant::now() + Duration::from_secs(10)).await;
        let mut all = String::new();
        io::Read::read_to_string(&mut read, &mut all).unwrap();
        assert_eq!(all.lines().last(), Some("99"));
    }
}
