//! One column of the table while it is being filled: a job that runs in QEMU or on this machine.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernels::LocalKernel;

/// The log level keeps the kernel's reports of OOM kills off the console: a report has five kilobytes, and writing it there
/// takes longer than the kill.
const CMDLINE: &str = "console=ttyS0 loglevel=4 log_buf_len=4M panic=-1 oops=panic";
/// How long a machine may take until its first line: an emulated boot, with another one beside it.
const BOOT: Duration = Duration::from_secs(240);
/// How long the guest may take beyond a test's own limit to report it.
const GRACE: Duration = Duration::from_secs(60);

/// A line of the guest, as tests/guest/src/suite.rs writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestLine {
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
    /// A line that a failed test printed.
    Output(String),
    End,
}

impl GuestLine {
    fn parse(text: &str) -> Option<GuestLine> {
        let (kind, rest) = text.split_once(' ')?;
        let mut fields = rest.splitn(3, ' ');
        let mut test = || Some(fields.next()?.to_owned());
        match kind {
            "|" => Some(GuestLine::Output(rest.to_owned())),
            "begin" => Some(GuestLine::Begin(rest.to_owned())),
            "end" => Some(GuestLine::End),
            "ok" => Some(GuestLine::Ok { test: test()?, took: parse_milliseconds(fields.next()?)? }),
            "fail" => Some(GuestLine::Fail {
                test: test()?,
                took: parse_milliseconds(fields.next()?)?,
                reason: fields.next().unwrap_or_default().to_owned(),
            }),
            _ => None,
        }
    }
}

fn parse_milliseconds(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

/// What a column has written since it was last polled.
pub struct Update {
    pub lines: Vec<GuestLine>,
    /// Set when the job is over: whether it finished, or why not.
    pub end: Option<Result<(), String>>,
}

/// A running column.
pub struct Column {
    pub name: String,
    child: Child,
    verdicts: PathBuf,
    /// The log of the machine's console.
    pub console: PathBuf,
    /// The test that runs now.
    pub current: Option<String>,
    /// What it printed, if it failed.
    pub output: Vec<String>,
    read: u64,
    partial_line: String,
    last_line_at: Instant,
    patience: Duration,
    test_limit: Duration,
}

impl Column {
    /// Boots `kernel`. Everything that the machine writes goes to `folder`.
    pub fn machine(
        kernel: &LocalKernel,
        folder: &Path,
        initramfs: &Path,
        test_limit: Duration,
    ) -> Result<Column> {
        let (verdicts, console) = (folder.join("verdicts.log"), folder.join("console.log"));
        for file in [&verdicts, &console] {
            File::create(file).with_context(|| format!("write {}", file.display()))?;
        }
        // Tests of this machine that run beside it come first. And QEMU must not outlive us, however we end.
        let mut qemu = Command::new("nice");
        qemu.args(["-n", "19", "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-name"])
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

    /// Runs the job on this machine's kernel.
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
        Column {
            name,
            child,
            verdicts,
            console,
            current: None,
            output: Vec::new(),
            read: 0,
            partial_line: String::new(),
            last_line_at: Instant::now(),
            patience: BOOT,
            test_limit,
        }
    }

    /// Reads what the guest has written since the last call.
    pub fn poll(&mut self) -> Result<Update> {
        // Ask before reading: the last lines of a process that has just ended must not be lost.
        let ended = self.child.try_wait()?;
        let lines = self.lines()?;
        if !lines.is_empty() {
            self.last_line_at = Instant::now();
            self.patience = self.test_limit + GRACE;
        }
        let has_finished = lines.last() == Some(&GuestLine::End);
        let end = match ended {
            _ if has_finished => Some(Ok(())),
            Some(status) => Some(Err(format!("it ended ({status}) before the job did"))),
            None if self.last_line_at.elapsed() > self.patience => {
                Some(Err(format!("no line for {} s", self.patience.as_secs())))
            }
            None => None,
        };
        Ok(Update { lines, end })
    }

    fn lines(&mut self) -> Result<Vec<GuestLine>> {
        let mut file = File::open(&self.verdicts).with_context(|| self.verdicts.display().to_string())?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes)? as u64;
        self.partial_line.push_str(&String::from_utf8_lossy(&bytes));
        let mut lines = Vec::new();
        while let Some(end) = self.partial_line.find('\n') {
            let line: String = self.partial_line.drain(..=end).collect();
            lines.extend(GuestLine::parse(line.trim_end_matches(['\r', '\n'])));
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
    fn the_guests_lines_are_parsed_and_other_output_is_skipped() {
        let ms = Duration::from_millis;
        assert_eq!(GuestLine::parse("begin oom::a"), Some(GuestLine::Begin("oom::a".into())));
        assert_eq!(
            GuestLine::parse("ok oom::a 12"),
            Some(GuestLine::Ok { test: "oom::a".into(), took: ms(12) })
        );
        let fail =
            GuestLine::Fail { test: "oom::a".into(), took: ms(3), reason: "killed by signal 9".into() };
        assert_eq!(GuestLine::parse("fail oom::a 3 killed by signal 9"), Some(fail));
        assert_eq!(GuestLine::parse("| ok oom::a 12"), Some(GuestLine::Output("ok oom::a 12".into())));
        assert_eq!((GuestLine::parse("ok oom::a"), GuestLine::parse("[ 1.0] BUG:")), (None, None));
    }

    #[test]
    fn a_machine_that_ends_without_its_last_line_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let end_of = |text: &str| {
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
        assert_eq!(end_of("echo begin a; echo end 1"), Ok(()));
        let end = end_of("echo begin a; exit 7");
        assert!(end.unwrap_err().contains("before the job did"));
    }
}
