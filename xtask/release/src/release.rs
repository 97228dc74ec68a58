//! All files of a release, in one folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::files::{self, Entries};
use crate::image::PROGRAMS;
use crate::krew;
use crate::source::Source;

/// What kubectl calls to complete the plugin's arguments.
const PLUGIN_COMPLETION: &str = "kubectl_complete-podopsy";
const SHELLS: [&str; 3] = ["bash", "fish", "zsh"];

/// Writes everything but the image and the bill of materials, which are there already, and the checksums of all.
pub fn write(source: &Source, programs: &Path, arch: &str, folder: &Path) -> Result<()> {
    let name = format!("podopsy-{}", source.version);
    write_completions(&programs.join("podopsy"), folder)?;
    write_man_pages(&programs.join("podopsy"), folder)?;
    let seconds = u64::try_from(source.time.as_second()).unwrap_or_default();

    let mut entries = Entries::new();
    for program in PROGRAMS {
        files::add_file(&mut entries, format!("{name}/{program}"), &programs.join(program), true)?;
    }
    for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
        files::add_file(&mut entries, format!("{name}/{license}"), &source.root.join(license), false)?;
    }
    let unit = "podopsy-agent.service";
    files::add_file(
        &mut entries,
        format!("{name}/{unit}"),
        &source.root.join("manifests/systemd").join(unit),
        false,
    )?;
    let plugin_completion = format!("{name}/completions/{PLUGIN_COMPLETION}");
    files::add_file(
        &mut entries,
        plugin_completion,
        &folder.join("completions").join(PLUGIN_COMPLETION),
        true,
    )?;
    for shell in SHELLS {
        let file = format!("completions/podopsy.{shell}");
        files::add_file(&mut entries, format!("{name}/{file}"), &folder.join(&file), false)?;
    }
    files::add_folder(&mut entries, &format!("{name}/man"), &folder.join("man"))?;
    let archive = folder.join(format!("{name}-linux-{arch}.tar.gz"));
    files::write_tar(&archive, &entries, seconds)?;
    krew::write(source.version, arch, &archive, &folder.join("podopsy.krew.yaml"))?;

    let mut manifests = Entries::new();
    files::add_folder(&mut manifests, &format!("{name}-manifests"), &source.root.join("manifests"))?;
    files::write_tar(&folder.join(format!("{name}-manifests.tar.gz")), &manifests, seconds)?;

    // As `helm package` would: the chart's folder at the top.
    let mut chart = Entries::new();
    files::add_folder(&mut chart, "podopsy", &source.root.join("target/chart/podopsy"))?;
    ensure!(!chart.is_empty(), "there is no chart in target/chart: run `cargo xtask chart`");
    files::write_tar(&folder.join(format!("{name}-chart.tgz")), &chart, seconds)?;
    files::write_checksums(folder)
}

fn write_completions(podopsy: &Path, folder: &Path) -> Result<()> {
    let target = folder.join("completions");
    fs::create_dir_all(&target)?;
    for shell in SHELLS {
        let script = run(Command::new(podopsy).args(["completion", shell]))?;
        fs::write(target.join(format!("podopsy.{shell}")), script)?;
    }
    let script = target.join(PLUGIN_COMPLETION);
    fs::write(&script, include_str!("../files/kubectl_complete-podopsy"))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn write_man_pages(podopsy: &Path, folder: &Path) -> Result<()> {
    let target = folder.join("man");
    fs::create_dir_all(&target)?;
    run(Command::new(podopsy).arg("man-pages").arg(&target)).map(drop)
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let out =
        command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(out.stdout)
}
