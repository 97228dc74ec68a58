//! One column of the table while it is being filled: a machine in QEMU, or this machine, that runs the job.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernels::Fetched;

/// The kernel's report of an OOM kill is five kilobytes: on the console it would take longer than the kill.
const CMDLINE: &str = "console=ttyS0 loglevel=4 log_buf_len=4M panic=-1 oops=panic";
/// Until the first word of a machine: its boot under emulation, with another one beside it.
const BOOT: Duration = Duration::from_secs(240);
/// What the guest may need beyond a test's own limit to say so.
const GRACE: Duration = Duration::from_secs(60);

/// A line of the guest, as tests/guest/src/suite.rs writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Begin(String),
    Ok {
        test: String,
        took: Duration,
    },
    Fail {
        test: String,
        took: Duration,
        reason: String,
    },
    /// What a failed test printed.
    Said(String),
    End,
}

impl Line {
    fn parse(text: &str) -> Option<Line> {
        let (word, rest) = text.split_once(' ')?;
        let mut words = rest.splitn(3, ' ');
        let mut test = || Some(words.next()?.to_owned());
        match word {
            "|" => Some(Line::Said(rest.to_owned())),
            "begin" => Some(Line::Begin(rest.to_owned())),
            "end" => Some(Line::End),
            "ok" => Some(Line::Ok { test: test()?, took: took(words.next()?)? }),
            "fail" => Some(Line::Fail {
                test: test()?,
                took: took(words.next()?)?,
                reason: words.next().unwrap_or_default().to_owned(),
            }),
            _ => None,
        }
    }
}

fn took(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

/// What a column said.
pub struct Heard {
    pub lines: Vec<Line>,
    /// Once it is over: in order, or why not.
    pub end: Option<Result<(), String>>,
}

/// A running column.
pub struct Column {
    pub name: String,
    child: Child,
    verdicts: PathBuf,
    /// What to read when it goes wrong.
    pub console: PathBuf,
    /// The test of the moment.
    pub current: Option<String>,
    /// What it printed, should it fail.
    pub said: Vec<String>,
    read: u64,
    rest: String,
    last: Instant,
    patience: Duration,
    test_limit: Duration,
}

impl Column {
    /// Boots `kernel`; everything that it writes goes to `folder`.
    pub fn machine(
        kernel: &Fetched,
        folder: &Path,
        initramfs: &Path,
        test_limit: Duration,
    ) -> Result<Column> {
        let (verdicts, console) = (folder.join("verdicts.log"), folder.join("console.log"));
        for file in [&verdicts, &console] {
            File::create(file).with_context(|| format!("write {}", file.display()))?;
        }
        // QEMU must not outlive us, however we end.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-name"])
            .arg(format!("podopsy-lab-{}", kernel.name));
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072", "-no-reboot"]);
        qemu.args(["-display", "none", "-monitor", "none", "-nic", "none", "-kernel"]).arg(&kernel.image);
        qemu.arg("-initrd").arg(initramfs).args(["-append", CMDLINE]);
        for port in [&console, &verdicts] {
            qemu.arg("-serial").arg(format!("file:{}", port.display()));
        }
        qemu.args([
            "-virtfs",
            "local,path=/,mount_tag=host0,security_model=none,readonly=on,multidevs=remap",
        ]);
        let log = File::create(folder.join("qemu.log"))?;
        let child = qemu
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start qemu-system-x86_64: apt-get install qemu-system-x86")?;
        Ok(Column::new(kernel.name.to_owned(), child, verdicts, console, test_limit))
    }

    /// The same job on this machine's kernel.
    pub fn running(
        name: &str,
        folder: &Path,
        guest: &Path,
        job: &str,
        test_limit: Duration,
    ) -> Result<Column> {
        let (verdicts, console) = (folder.join("verdicts.log"), folder.join("console.log"));
        let job_file = folder.join("job");
        fs::write(&job_file, job).with_context(|| format!("write {}", job_file.display()))?;
        let child = Command::new(guest)
            .arg(&job_file)
            .stdin(Stdio::null())
            .stdout(File::create(&verdicts)?)
            .stderr(File::create(&console)?)
            .spawn()
            .with_context(|| format!("start {}", guest.display()))?;
        Ok(Column::new(name.to_owned(), child, verdicts, console, test_limit))
    }

    fn new(name: String, child: Child, verdicts: PathBuf, console: PathBuf, test_limit: Duration) -> Column {
        let last = Instant::now();
        Column {
            name,
            child,
            verdicts,
            console,
            current: None,
            said: Vec::new(),
            read: 0,
            rest: String::new(),
            last,
            patience: BOOT,
            test_limit,
        }
    }

    /// What was said since the last call.
    pub fn poll(&mut self) -> Result<Heard> {
        // Ask before reading: what it said last must not be lost.
        let ended = self.child.try_wait()?;
        let lines = self.lines()?;
        if !lines.is_empty() {
            self.last = Instant::now();
            self.patience = self.test_limit + GRACE;
        }
        let in_order = lines.last() == Some(&Line::End);
        let end = match ended {
            _ if in_order => Some(Ok(())),
            Some(status) => Some(Err(format!("it ended ({status}) in the middle"))),
            None if self.last.elapsed() > self.patience => {
                Some(Err(format!("nothing heard for {} s", self.patience.as_secs())))
            }
            None => None,
        };
        Ok(Heard { lines, end })
    }

    fn lines(&mut self) -> Result<Vec<Line>> {
        let mut file = File::open(&self.verdicts).with_context(|| self.verdicts.display().to_string())?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes)? as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let mut lines = Vec::new();
        while let Some(end) = self.rest.find('\n') {
            let line: String = self.rest.drain(..=end).collect();
            lines.extend(Line::parse(line.trim_end_matches(['\r', '\n'])));
        }
        Ok(lines)
    }
}

impl Drop for Column {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_lines_are_read_and_noise_is_not() {
        let ms = Duration::from_millis;
        assert_eq!(Line::parse("begin oom::a"), Some(Line::Begin("oom::a".into())));
        assert_eq!(Line::parse("ok oom::a 12"), Some(Line::Ok { test: "oom::a".into(), took: ms(12) }));
        let fail = Line::Fail { test: "oom::a".into(), took: ms(3), reason: "killed by signal 9".into() };
        assert_eq!(Line::parse("fail oom::a 3 killed by signal 9"), Some(fail));
        assert_eq!(Line::parse("| ok oom::a 12"), Some(Line::Said("ok oom::a 12".into())));
        assert_eq!((Line::parse("ok oom::a"), Line::parse("[ 1.0] BUG:")), (None, None));
    }

    #[test]
    fn a_machine_that_ends_without_its_last_line_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let say = |text: &str| {
            // A shell is a guest whose job is a script.
            let mut column =
                Column::running("t", folder.path(), Path::new("/bin/sh"), text, Duration::from_secs(1))
                    .unwrap();
            loop {
                if let Some(end) = column.poll().unwrap().end {
                    return end;
                }
            }
        };
        assert_eq!(say("echo begin a; echo end 1"), Ok(()));
        let end = say("echo begin a; exit 7");
        assert!(end.unwrap_err().contains("in the middle"));
    }
}
