//! Incidents on disk: JSON lines, bounded, for `podopsy oom` to read. (The store replaces it.)

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::model::Event;

/// Where the agent keeps it unless told otherwise, and where the CLI looks.
pub const DIR: &str = "/var/lib/podopsy";
const FILE: &str = "incidents.jsonl";
/// A file is put aside at this size; one is kept aside.
const FILE_MAX: u64 = 16 << 20;
/// A longer line is none of ours.
const LINE_MAX: u64 = 4 << 20;

/// Appends incidents.
pub struct History {
    dir: PathBuf,
    file: File,
    size: u64,
}

impl History {
    pub fn open(dir: &Path) -> anyhow::Result<History> {
        fs::create_dir_all(dir).with_context(|| format!("make {} (--state-dir)", dir.display()))?;
        let (file, size) = append(dir)?;
        Ok(History { dir: dir.to_owned(), file, size })
    }

    /// Writes an incident; any other event is passed over.
    pub fn add(&mut self, event: &Event) -> anyhow::Result<()> {
        if event.incident.is_none() {
            return Ok(());
        }
        let mut line = serde_json::to_vec(event).context("write an incident as JSON")?;
        line.push(b'\n');
        if self.size + line.len() as u64 > FILE_MAX {
            let file = self.dir.join(FILE);
            fs::rename(&file, self.dir.join(format!("{FILE}.1"))).context("put the full history aside")?;
            (self.file, self.size) = append(&self.dir)?;
        }
        self.file.write_all(&line).with_context(|| format!("write to {}", self.dir.display()))?;
        self.size += line.len() as u64;
        Ok(())
    }
}

fn append(dir: &Path) -> anyhow::Result<(File, u64)> {
    let path = dir.join(FILE);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("open {} (--state-dir)", path.display()))?;
    let size = file.metadata().map(|meta| meta.len()).unwrap_or(0);
    Ok((file, size))
}

/// All incidents, oldest first, the last word on each; and how many lines could not be read.
pub fn read(dir: &Path) -> (Vec<Event>, u64) {
    let mut events: Vec<Event> = Vec::new();
    let (mut known, mut bad) = (HashMap::new(), 0);
    for name in [format!("{FILE}.1"), FILE.to_owned()] {
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
            let id = event.as_ref().and_then(|event| event.incident.as_ref()).map(|one| one.id.clone());
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
        fs::write(dir.path().join(FILE), b"{\n\xff\n").unwrap();
        let mut history = History::open(dir.path()).unwrap();
        history.add(&event("3f2a-1", 1)).unwrap();
        history.size = FILE_MAX;
        history.add(&event("3f2a-2", 2)).unwrap();
        let (events, bad) = read(dir.path());
        let ids: Vec<_> = events.iter().filter_map(|e| Some(e.incident.as_ref()?.id.as_str())).collect();
        assert_eq!((ids, bad), (vec!["3f2a-1", "3f2a-2"], 2));
        assert!(dir.path().join(format!("{FILE}.1")).exists());
    }
}
