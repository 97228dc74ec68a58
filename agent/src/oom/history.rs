//! OOM incidents and other SIGKILLs on disk: JSON lines, bounded, for `podopsy oom` to read. (The store replaces it.)

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::model::Event;

/// Where the agent keeps it unless told otherwise, and where the CLI looks.
pub const DIR: &str = "/var/lib/podopsy";
/// A longer line is none of ours.
const LINE_MAX: u64 = 4 << 20;

/// A file that is put aside at its size; one is kept aside.
#[derive(Clone, Copy)]
struct Book {
    name: &'static str,
    most: u64,
}

/// Each has its own bound: who can make many of one kind cannot push out the other.
const INCIDENTS: Book = Book { name: "incidents.jsonl", most: 16 << 20 };
const SIGKILLS: Book = Book { name: "sigkills.jsonl", most: 4 << 20 };

/// Appends OOM incidents and other SIGKILLs.
pub struct History {
    incidents: Pen,
    sigkills: Pen,
}

impl History {
    pub fn open(dir: &Path) -> anyhow::Result<History> {
        fs::create_dir_all(dir).with_context(|| format!("make {} (--state-dir)", dir.display()))?;
        Ok(History { incidents: Pen::open(dir, INCIDENTS)?, sigkills: Pen::open(dir, SIGKILLS)? })
    }

    /// Writes an incident or a SIGKILL; any other event is passed over.
    pub fn add(&mut self, event: &Event) -> anyhow::Result<()> {
        match (&event.incident, event.sigkill()) {
            (Some(_), _) => self.incidents.write(event),
            (None, Some(_)) => self.sigkills.write(event),
            (None, None) => Ok(()),
        }
    }
}

struct Pen {
    dir: PathBuf,
    book: Book,
    file: File,
    size: u64,
}

impl Pen {
    fn open(dir: &Path, book: Book) -> anyhow::Result<Pen> {
        let path = dir.join(book.name);
        // What happens in pods is not every local user's business.
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("open {} (--state-dir)", path.display()))?;
        let size = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        Ok(Pen { dir: dir.to_owned(), book, file, size })
    }

    fn write(&mut self, event: &Event) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(event).context("write an event as JSON")?;
        line.push(b'\n');
        if self.size + line.len() as u64 > self.book.most {
            let aside = self.dir.join(aside(self.book));
            fs::rename(self.dir.join(self.book.name), aside).context("put the full history aside")?;
            *self = Pen::open(&self.dir, self.book)?;
        }
        self.file.write_all(&line).with_context(|| format!("write to {}", self.dir.display()))?;
        self.size += line.len() as u64;
        Ok(())
    }
}

fn aside(book: Book) -> String {
    format!("{}.1", book.name)
}

/// All that is kept, oldest first, the last word on each; and how many lines could not be read.
pub fn read(dir: &Path) -> (Vec<Event>, u64) {
    let mut events: Vec<Event> = Vec::new();
    let (mut known, mut bad) = (HashMap::new(), 0);
    let names = [INCIDENTS, SIGKILLS].map(|book| [aside(book), book.name.to_owned()]);
    for name in names.as_flattened() {
        let Ok(file) = File::open(dir.join(name)) else { continue };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let event = serde_json::from_slice::<Event>(&line).ok();
            let id = event.as_ref().and_then(|event| event.kept_id()).map(str::to_owned);
            let (Some(event), Some(id)) = (event, id) else {
                bad += 1;
                continue;
            };
            match known.get(&id) {
                Some(&at) => events[at] = event,
                None => {
                    known.insert(id, events.len());
                    events.push(event);
                }
            }
        }
    }
    events.sort_by_key(|event| event.time);
    (events, bad)
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::model::event::ProcessRef;
    use crate::model::sigkill::Sender;
    use crate::model::{Detail, Kind, Losses, OomKill, Owner};

    fn event(id: &str, second: i64) -> Event {
        let mut incident = crate::oom::verdict::tests::incident();
        incident.id = id.into();
        let task = incident.victims[0].task.clone();
        let kill = OomKill {
            victim: task.clone(),
            trigger: task.clone(),
            trigger_cgroup: Default::default(),
            rss: None,
            oom_score_adj: None,
            kernel_stack: Vec::new(),
            user_stack: Vec::new(),
            incident: Some(id.into()),
            limit: None,
            already_dying: false,
            recovered: false,
        };
        let process = ProcessRef { pid: task.pid, comm: task.comm, start_time: None };
        let time = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second);
        let detail = Detail::Oom(kill);
        let mut event =
            Event::new(time, Kind::OomIncident, "n", Owner::default(), process, detail, Losses::new());
        event.incident = Some(Box::new(incident));
        event
    }

    #[test]
    fn what_is_added_is_read_in_order_and_the_last_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(&dir.path().join("new")).unwrap();
        let (later, first) = (event("3f2a-9", 20), event("3f2a-7", 10));
        let mut again = later.clone();
        again.node = "renamed".into();
        for one in [&later, &first, &again] {
            history.add(one).unwrap();
        }
        // A kill is no incident.
        history.add(&Event { incident: None, ..first.clone() }).unwrap();
        assert_eq!(read(&dir.path().join("new")), (vec![first, again], 0));
        assert_eq!(read(&dir.path().join("none")), (Vec::new(), 0));
    }

    #[test]
    fn a_full_file_is_put_aside_and_still_read_and_garbage_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(INCIDENTS.name), b"{\n\xff\n").unwrap();
        let mut history = History::open(dir.path()).unwrap();
        history.add(&event("3f2a-1", 1)).unwrap();
        history.incidents.size = INCIDENTS.most;
        history.add(&event("3f2a-2", 2)).unwrap();
        let (events, bad) = read(dir.path());
        let ids: Vec<_> = events.iter().filter_map(|e| Some(e.incident.as_ref()?.id.as_str())).collect();
        assert_eq!((ids, bad), (vec!["3f2a-1", "3f2a-2"], 2));
        assert!(dir.path().join(aside(INCIDENTS)).exists());
    }

    #[test]
    fn sigkills_are_kept_beside_and_cannot_push_incidents_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        let sigkill = crate::sigkill::verdict::tests::sigkill(Sender::Kubelet, "kubelet", None);
        let killed = Event {
            kind: Kind::Sigkill,
            detail: Detail::Sigkill(sigkill),
            incident: None,
            ..event("3f2a-5", 30)
        };
        let oom = event("3f2a-1", 1);
        history.add(&oom).unwrap();
        history.add(&killed).unwrap();
        for _ in 0..2 {
            history.sigkills.size = SIGKILLS.most;
            history.add(&killed).unwrap();
        }
        assert_eq!(read(dir.path()), (vec![oom, killed], 0));
    }
}
