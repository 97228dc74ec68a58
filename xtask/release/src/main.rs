//! `podopsy-release`: writes the image and the other files of a release, from static binaries that are built already.
//! `cargo xtask image` and `cargo xtask release` build them and call it.
//!
//! | module | does |
//! |---|---|
//! | [`source`] | version, commit, time, packages |
//! | [`packages`] | what is compiled into a program, by `cargo tree` |
//! | [`sbom`] | the bill of materials |
//! | [`image`] | the OCI archive |
//! | [`krew`] | the manifest of kubectl's plugin |
//! | [`release`] | completions, man pages, archives; checksums of all |
//! | [`files`] | archives and checksums that depend on their content alone |
//!
//! Must not depend on: the agent, the recorder, a container runtime.
#![forbid(unsafe_code)]

mod files;
mod image;
mod krew;
mod packages;
mod release;
mod sbom;
mod source;

use std::path::PathBuf;
use std::{fs, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use image::Platform;
use sbom::Subject;
use source::Source;

/// Writes podopsy's image or a whole release from static binaries
#[derive(Debug, Parser)]
#[command(name = "podopsy-release", version)]
struct Args {
    what: What,
    /// The folder with the static binaries
    #[arg(long, value_name = "FOLDER")]
    programs: PathBuf,
    /// The target that they were built for
    #[arg(long, value_name = "TRIPLE")]
    target: String,
    /// Binaries for another processor, for one image of several platforms
    #[arg(long, value_name = "ARCH=FOLDER", value_parser = |text: &str| Platform::parse(text).map_err(|error| format!("{error:#}")))]
    platform: Vec<Platform>,
    /// The image's name
    #[arg(long)]
    tag: String,
    /// Where the files are written to; what is in the folder is removed
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The image and the bill of materials
    Image,
    /// Also binaries, manifests, completions, man pages and checksums
    All,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podopsy-release: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let source = Source::find()?;
    if args.out.exists() {
        fs::remove_dir_all(&args.out).with_context(|| format!("empty {}", args.out.display()))?;
    }
    fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    let name = format!("podopsy-{}", source.version);

    let subject = Subject {
        name: "podopsy".to_owned(),
        version: source.version.to_owned(),
        time: source.time.to_string(),
        compiler: source.compiler.clone(),
    };
    let packages = source.packages(&args.target)?;
    let sbom = sbom::write(&subject, &packages, &source.linked()?)?;
    fs::write(args.out.join(format!("{name}.cdx.json")), &sbom)?;

    let here = Platform::here(&args.programs);
    let arch = here.arch.to_string();
    let platforms: Vec<Platform> = std::iter::once(here).chain(args.platform.iter().cloned()).collect();
    image::write(&source, &args.tag, &platforms, &sbom, &args.out.join(format!("{name}.oci.tar")))?;
    if args.what == What::All {
        release::write(&source, &args.programs, &arch, &args.out)?;
    }
    for file in files::files_below(&args.out)? {
        let size = fs::metadata(&file)?.len();
        eprintln!("  {:>8.2} MB  {}", size as f64 / 1e6, file.display());
    }
    Ok(())
}
