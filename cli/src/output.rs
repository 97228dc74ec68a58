//! Files that a profile is written to: whole or not at all, and never through a link.

use std::fs::{self, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podopsy_agent::export;
use podopsy_agent::model::{profile::Profile, text};
use tempfile::NamedTempFile;

use crate::exit::Refused;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Pprof,
    Folded,
    Svg,
}

/// A file to be written, and the format that its ending asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub path: PathBuf,
    pub format: Format,
}

impl Output {
    pub fn new(path: PathBuf) -> Result<Self, String> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        // A name that is nothing but an ending (".svg") is a hidden file without one.
        let ends = |ending: &str| name.len() > ending.len() && name.ends_with(ending.as_bytes());
        let format = if ends(".pb.gz") {
            Format::Pprof
        } else if ends(".folded") {
            Format::Folded
        } else if ends(".svg") {
            Format::Svg
        } else {
            return Err(
                "the ending says the format: .pb.gz (pprof), .folded (folded stacks) or .svg (flame graph)"
                    .to_owned(),
            );
        };
        Ok(Output { path, format })
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
        self.finish_with(|format, out| match format {
            Format::Pprof => export::pprof::write(profile, out),
            Format::Folded => export::folded::write(profile, out),
            Format::Svg => export::svg::write(profile, out),
        })
    }

    fn finish_with(
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

fn shown(path: &Path) -> String {
    text::escape_bytes(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(path: PathBuf) -> Vec<Output> {
        vec![Output::new(path).unwrap()]
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
        let format = |path: &str| Output::new(path.into()).map(|output| output.format);
        assert_eq!(format("a.pb.gz"), Ok(Format::Pprof));
        assert_eq!(format("/x/y.folded"), Ok(Format::Folded));
        assert_eq!(format("y.svg"), Ok(Format::Svg));
        for path in ["", "a", "a.gz", "a.txt", ".svg", "dir/", "a.SVG"] {
            assert!(format(path).is_err(), "{path}");
        }
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
