//! Files that a profile is written to: whole or not at all, and never through a link.

use std::fs::{self, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podopsy_model::{profile::Profile, text};
use podopsy_profiles::export::Format;
use tempfile::NamedTempFile;

use crate::exit::Refused;

/// A file to be written, and its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub path: PathBuf,
    pub format: Format,
}

impl Output {
    /// In `format`, or as the ending says.
    pub fn new(path: PathBuf, format: Option<Format>) -> Result<Self, Refused> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        match format.or_else(|| Format::from_file_name(name)) {
            Some(format) if !name.is_empty() => Ok(Output { path, format }),
            _ => Err(Refused(format!(
                "{}: the ending says the format: {}; for another ending, say --format",
                shown(&path),
                Format::ALL.map(|format| format!("{} ({})", format.extension(), what(format))).join(", ")
            ))),
        }
    }

    /// The path, safe to print.
    pub fn shown(&self) -> String {
        shown(&self.path)
    }

    /// How to look at it.
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

/// Outputs whose folder took a temporary file, so that no sampling is in vain.
#[derive(Debug)]
pub struct Pending(Vec<(Output, NamedTempFile)>);

/// Opens a temporary file beside each output. What could not be written is refused now, not in 30 s.
pub fn prepare(outputs: Vec<Output>) -> anyhow::Result<Pending> {
    let mut pending: Vec<(Output, NamedTempFile)> = Vec::new();
    for output in outputs {
        if pending.iter().any(|(other, _)| other.path == output.path) {
            return Err(Refused(format!("{} is given twice", output.shown())).into());
        }
        refuse_links(&output.path)?;
        let folder = match output.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".podopsy-")
            // As any program makes its files: what the umask leaves of it.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .with_context(|| format!("cannot write {}", output.shown()))?;
        pending.push((output, temporary));
    }
    Ok(Pending(pending))
}

impl Pending {
    /// Writes `profile` to each and gives it its name; an error leaves what was there before, and costs
    /// no other output: the samples cannot be taken again.
    pub fn finish(self, profile: &Profile) -> Vec<(Output, anyhow::Result<()>)> {
        self.finish_with(|format, out| format.write(profile, out))
    }

    /// The same for what is no profile; the format is the caller's to understand.
    pub fn finish_with(
        self,
        write: impl Fn(Format, &mut dyn std::io::Write) -> anyhow::Result<()>,
    ) -> Vec<(Output, anyhow::Result<()>)> {
        let finished = self.0.into_iter().map(|(output, temporary)| {
            let result = finish_one(&output, temporary, &write)
                .with_context(|| format!("cannot write {}", output.shown()));
            (output, result)
        });
        finished.collect()
    }
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
    // Without it a crash could leave the name with nothing behind it.
    temporary.as_file().sync_all()?;
    refuse_links(&output.path)?;
    temporary.persist(&output.path).map_err(|error| error.error)?;
    Ok(())
}

/// A rename would put the profile in the place of a link, a device or a pipe, which nobody can have meant.
fn refuse_links(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let kind = metadata.file_type();
    if kind.is_symlink() {
        return Err(Refused(format!("{} is a symbolic link: name the file itself", shown(path))).into());
    }
    if !kind.is_file() {
        bail!(Refused(format!("{} is there and is no regular file", shown(path))));
    }
    Ok(())
}

/// What a format is, in a word or two.
fn what(format: Format) -> &'static str {
    match format {
        Format::Pprof => "pprof",
        Format::Folded => "folded stacks",
        Format::Svg => "flame graph",
        Format::Speedscope => "speedscope",
        Format::Firefox => "Firefox Profiler",
    }
}

/// For clap: a format by its name.
pub fn format(name: &str) -> Result<Format, String> {
    Format::from_name(name)
        .ok_or_else(|| format!("the formats are {}", Format::ALL.map(Format::as_str).join(", ")))
}

fn shown(path: &Path) -> String {
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
    fn the_ending_says_the_format() {
        let format = |path: &str| Output::new(path.into(), None).map(|output| output.format).ok();
        assert_eq!(format("a.pb.gz"), Some(Format::Pprof));
        assert_eq!(format("/x/y.folded"), Some(Format::Folded));
        assert_eq!(format("y.svg"), Some(Format::Svg));
        assert_eq!(format("y.speedscope.json"), Some(Format::Speedscope));
        assert_eq!(format("y.firefox.json"), Some(Format::Firefox));
        for path in ["", "a", "a.gz", "a.json", ".svg", "dir/", "a.SVG"] {
            assert!(format(path).is_none(), "{path}");
        }
        let said = Output::new("a.json".into(), Some(Format::Speedscope)).map(|output| output.format);
        assert_eq!(said.ok(), Some(Format::Speedscope));
        let error = Output::new("a.json".into(), None).unwrap_err().to_string();
        assert!(Format::ALL.iter().all(|format| error.contains(format.extension())), "{error}");
    }

    #[test]
    fn a_file_appears_whole_and_replaces_the_old_one() {
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
    fn a_failure_leaves_the_old_file_and_no_litter_and_spares_the_others() {
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
    fn links_and_pipes_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        let link = dir.path().join("link.svg");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = prepare(output(link.clone())).unwrap_err();
        assert!(error.is::<Refused>() && error.to_string().contains("symbolic link"), "{error}");
        let folder = dir.path().join("folder.svg");
        fs::create_dir(&folder).unwrap();
        assert!(prepare(output(folder)).unwrap_err().is::<Refused>());

        // Also when it is put there while we sample.
        let late = dir.path().join("late.svg");
        let pending = prepare(output(late.clone())).unwrap();
        std::os::unix::fs::symlink(&target, &late).unwrap();
        assert!(pending.finish_with(|_, out| Ok(out.write_all(b"x")?))[0].1.is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_missing_folder_is_said_before_sampling() {
        let error = prepare(output("/nonexistent/a.svg".into())).unwrap_err();
        assert!(format!("{error:#}").contains("cannot write /nonexistent/a.svg"), "{error:#}");
        let twice = [output("/tmp/x.svg".into()), output("/tmp/x.svg".into())].concat();
        assert!(prepare(twice).unwrap_err().to_string().contains("twice"));
    }
}
