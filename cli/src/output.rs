//! The files that a profile is written to. A file is written completely or not at all, and never through a link.

use std::fs::{self, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podopsy_model::{profile::Profile, text};
use podopsy_profiles::export::Format;
use tempfile::NamedTempFile;

use crate::exit::Refusal;
use crate::terminal::note;

/// A file to write, and its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub path: PathBuf,
    pub format: Format,
}

impl Output {
    /// Takes the format from the file name's extension, unless `format` is given.
    pub fn new(path: PathBuf, format: Option<Format>) -> Result<Self, Refusal> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        match format.or_else(|| Format::from_file_name(name)) {
            Some(format) if !name.is_empty() => Ok(Output { path, format }),
            _ if path.as_os_str() == STDOUT => {
                Err(Refusal("-o -: stdout has no extension, so give the format with --format".to_owned()))
            }
            _ => Err(Refusal(format!(
                "{}: the file name's extension selects the format: {}; for another extension, give --format",
                shown(&path),
                Format::ALL
                    .map(|format| format!("{} ({})", format.extension(), format_name(format)))
                    .join(", ")
            ))),
        }
    }

    /// The path, safe to print.
    pub fn shown(&self) -> String {
        shown(&self.path)
    }

    /// Whether it is stdout.
    pub fn is_stdout(&self) -> bool {
        self.path.as_os_str() == STDOUT
    }

    /// How to open the file, for a message.
    pub fn open_with(&self) -> String {
        let file = self.shown();
        match self.format {
            Format::Pprof => format!("go tool pprof {file}"),
            Format::Folded => format!("speedscope.app, or: inferno-flamegraph {file}"),
            Format::Svg => "any browser".to_owned(),
            Format::Speedscope => "https://www.speedscope.app (stays on your machine)".to_owned(),
            Format::Firefox => "https://profiler.firefox.com (\"Load a profile from file\")".to_owned(),
        }
    }
}

/// Writes one file completely or not at all; `-` is stdout. Returns whether it was a file.
pub fn write_file(path: &Path, mode: u32, content: &[u8]) -> anyhow::Result<bool> {
    if path.as_os_str() == STDOUT {
        std::io::stdout().lock().write_all(content)?;
        return Ok(false);
    }
    let mut temporary = temporary(path, mode)?;
    let written = temporary.write_all(content).map_err(anyhow::Error::from);
    let written = written.and_then(|()| persist(temporary, path));
    written.with_context(|| format!("cannot write {}", shown(path)))?;
    Ok(true)
}

/// Outputs with an open temporary file each, so that a folder that cannot be written fails before the sampling.
#[derive(Debug)]
pub struct Pending(Vec<(Output, Option<NamedTempFile>)>);

/// The name that stands for stdout.
const STDOUT: &str = "-";

/// Opens a temporary file next to each output. An output that cannot be written is refused now, not after the sampling.
pub fn prepare(outputs: Vec<Output>) -> anyhow::Result<Pending> {
    let mut pending: Vec<(Output, Option<NamedTempFile>)> = Vec::new();
    for output in outputs {
        if pending.iter().any(|(other, _)| other.path == output.path) {
            return Err(Refusal(format!("{} is given twice", output.shown())).into());
        }
        if output.is_stdout() {
            pending.push((output, None));
            continue;
        }
        let temporary = temporary(&output.path, 0o666)?;
        pending.push((output, Some(temporary)));
    }
    Ok(Pending(pending))
}

/// A temporary file next to `path`, to be renamed to it.
pub fn temporary(path: &Path, mode: u32) -> anyhow::Result<NamedTempFile> {
    refuse_links(path)?;
    // The umask reduces the mode, as for any file that a program creates.
    let created = tempfile::Builder::new()
        .prefix(".podopsy-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder_of(path));
    created.with_context(|| format!("cannot write {}", shown(path)))
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Gives a complete temporary file its name.
pub fn persist(temporary: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    // Without this, the name could refer to an empty file after a crash.
    temporary.as_file().sync_all()?;
    refuse_links(path)?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}

impl Pending {
    /// Whether stdout is one of the outputs: nothing else may be printed there.
    pub fn has_stdout(&self) -> bool {
        self.0.iter().any(|(output, _)| output.is_stdout())
    }

    /// Writes `profile` to each temporary file and renames it. After an error the former file is still there, and the
    /// other outputs are written all the same: the samples cannot be taken again.
    pub fn finish(self, profile: &Profile) -> Vec<(Output, anyhow::Result<()>)> {
        self.finish_with(|format, out| format.write(profile, out))
    }

    /// Like [`finish`](Self::finish) for a profile that an agent sent. pprof is written as it was sent: it has every detail.
    pub fn finish_sent(self, profile: &Profile, sent: &[u8]) -> Vec<(Output, anyhow::Result<()>)> {
        self.finish_with(|format, out| match format {
            Format::Pprof => Ok(out.write_all(sent)?),
            format => format.write(profile, out),
        })
    }

    /// Like [`finish`](Self::finish), but `write` produces the content in the format that it is given.
    pub fn finish_with(
        self,
        write: impl Fn(Format, &mut dyn std::io::Write) -> anyhow::Result<()>,
    ) -> Vec<(Output, anyhow::Result<()>)> {
        let finished = self.0.into_iter().map(|(output, temporary)| {
            let result = match temporary {
                Some(temporary) => finish_one(&output, temporary, &write),
                None => write(output.format, &mut std::io::stdout().lock()),
            };
            let result = result.with_context(|| format!("cannot write {}", output.shown()));
            (output, result)
        });
        finished.collect()
    }
}

/// Reports each file that was written. The error is the first one.
pub fn report(written: Vec<(Output, anyhow::Result<()>)>) -> anyhow::Result<()> {
    let mut first = Ok(());
    for (output, result) in written {
        match result {
            Ok(()) if output.is_stdout() => {}
            Ok(()) => note(&format!("wrote {}: open it with {}", output.shown(), output.open_with())),
            Err(error) => first = first.and(Err(error)),
        }
    }
    first
}

fn finish_one(
    output: &Output,
    temporary: NamedTempFile,
    write: impl Fn(Format, &mut dyn std::io::Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut out = BufWriter::new(temporary.as_file());
    write(output.format, &mut out)?;
    out.flush()?;
    drop(out);
    persist(temporary, &output.path)
}

/// Refuses links, devices and pipes: the rename would replace them by the profile.
fn refuse_links(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let kind = metadata.file_type();
    if kind.is_symlink() {
        return Err(Refusal(format!("{} is a symbolic link: name the file itself", shown(path))).into());
    }
    if !kind.is_file() {
        bail!(Refusal(format!("{} exists and is not a regular file: choose another name", shown(path))));
    }
    Ok(())
}

/// The format's name in messages.
fn format_name(format: Format) -> &'static str {
    match format {
        Format::Pprof => "pprof",
        Format::Folded => "folded stacks",
        Format::Svg => "flame graph",
        Format::Speedscope => "speedscope",
        Format::Firefox => "Firefox Profiler",
    }
}

/// Parses a format's name, for clap.
pub fn format(name: &str) -> Result<Format, String> {
    Format::from_name(name)
        .ok_or_else(|| format!("the formats are {}", Format::ALL.map(Format::as_str).join(", ")))
}

/// A path, safe to print.
pub fn shown(path: &Path) -> String {
    text::escape_bytes(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(path: PathBuf) -> Vec<Output> {
        vec![Output::new(path, None).unwrap()]
    }

    fn listing(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_extension_selects_the_format() {
        let format = |path: &str| Output::new(path.into(), None).map(|output| output.format).ok();
        assert_eq!(format("a.pb.gz"), Some(Format::Pprof));
        assert_eq!(format("/x/y.folded"), Some(Format::Folded));
        assert_eq!(format("y.svg"), Some(Format::Svg));
        assert_eq!(format("y.speedscope.json"), Some(Format::Speedscope));
        assert_eq!(format("y.firefox.json"), Some(Format::Firefox));
        for path in ["", "a", "a.gz", "a.json", ".svg", "dir/", "a.SVG"] {
            assert!(format(path).is_none(), "{path}");
        }
        let explicit = Output::new("a.json".into(), Some(Format::Speedscope)).map(|output| output.format);
        assert_eq!(explicit.ok(), Some(Format::Speedscope));
        let error = Output::new("a.json".into(), None).unwrap_err().to_string();
        assert!(Format::ALL.iter().all(|format| error.contains(format.extension())), "{error}");
    }

    #[test]
    fn stdout_takes_an_explicit_format_and_no_file() {
        assert!(Output::new("-".into(), None).unwrap_err().to_string().contains("--format"));
        let stdout = Output::new("-".into(), Some(Format::Pprof)).unwrap();
        let pending = prepare(vec![stdout]).unwrap();
        assert!(pending.has_stdout() && !Path::new("-").exists());
        assert!(!prepare(Vec::new()).unwrap().has_stdout());
    }

    #[test]
    fn a_file_is_replaced_only_by_a_complete_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.svg");
        fs::write(&path, "old").unwrap();
        let pending = prepare(output(path.clone())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        let finished = pending.finish_with(|_, out| Ok(out.write_all(b"new")?));
        assert!(finished[0].1.is_ok());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(listing(dir.path()), ["a.svg"]);
    }

    #[test]
    fn a_failed_output_keeps_the_old_file_and_the_other_outputs_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.svg");
        fs::write(&path, "old").unwrap();
        let both = [output(path.clone()), output(dir.path().join("b.folded"))].concat();
        let finished = prepare(both).unwrap().finish_with(|format, out| {
            out.write_all(b"half")?;
            if format == Format::Svg { bail!("disk on fire") } else { Ok(()) }
        });
        let error = format!("{:#}", finished[0].1.as_ref().unwrap_err());
        assert!(error.contains("a.svg: disk on fire"), "{error}");
        assert!(finished[1].1.is_ok());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(listing(dir.path()), ["a.svg", "b.folded"]);
    }

    #[test]
    fn links_and_folders_are_refused_and_stay_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        let link = dir.path().join("link.svg");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = prepare(output(link.clone())).unwrap_err();
        assert!(error.is::<Refusal>() && error.to_string().contains("symbolic link"), "{error}");
        let folder = dir.path().join("folder.svg");
        fs::create_dir(&folder).unwrap();
        assert!(prepare(output(folder)).unwrap_err().is::<Refusal>());

        // The link can also be created during the sampling.
        let late = dir.path().join("late.svg");
        let pending = prepare(output(late.clone())).unwrap();
        std::os::unix::fs::symlink(&target, &late).unwrap();
        assert!(pending.finish_with(|_, out| Ok(out.write_all(b"x")?))[0].1.is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_missing_folder_is_reported_before_the_sampling() {
        let error = prepare(output("/nonexistent/a.svg".into())).unwrap_err();
        assert!(format!("{error:#}").contains("cannot write /nonexistent/a.svg"), "{error:#}");
        let twice = [output("/tmp/x.svg".into()), output("/tmp/x.svg".into())].concat();
        assert!(prepare(twice).unwrap_err().to_string().contains("twice"));
    }
}
