//! podopsy's image: two static programs and the bill of materials, for each platform.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use podopsy_image::{Arch, Compression, Image};

use crate::source::Source;

/// The programs in the image, and where they are; as in manifests/Dockerfile.
pub const PROGRAMS: [&str; 2] = ["podopsy", "podopsy-agent"];
/// Where the bill of materials is in the image.
const SBOM: &str = "podopsy.cdx.json";

/// A platform and the folder with its programs.
#[derive(Clone, Debug)]
pub struct Platform {
    pub arch: Arch,
    pub programs: PathBuf,
}

impl Platform {
    pub fn here(programs: &Path) -> Platform {
        Platform { arch: Arch::default(), programs: programs.to_owned() }
    }

    /// Parses `arm64=FOLDER`.
    pub fn parse(text: &str) -> Result<Platform> {
        let (arch, programs) = text.split_once('=').context("ARCH=FOLDER, for example arm64=target/arm64")?;
        Ok(Platform { arch: Arch::from(arch), programs: programs.into() })
    }
}

/// Writes the archive.
pub fn write(source: &Source, tag: &str, platforms: &[Platform], sbom: &[u8], archive: &Path) -> Result<()> {
    let images: Vec<Image> = platforms.iter().map(|platform| image(source, tag, platform, sbom)).collect();
    podopsy_image::write(&images, archive)
}

fn image(source: &Source, tag: &str, platform: &Platform, sbom: &[u8]) -> Image {
    let image = Image::new(tag)
        .arch(platform.arch.clone())
        .compression(Compression::Gzip)
        // BPF, perf events and the memory maps of other processes need root on the node.
        .user("0:0")
        .entrypoint(["/podopsy-agent"])
        .file(SBOM, sbom);
    let image = PROGRAMS
        .iter()
        .fold(image, |image, program| image.binary_at(*program, platform.programs.join(program)));
    let mut labels = vec![
        ("title", "podopsy".to_owned()),
        ("description", "A flight recorder and autopsy kit for Kubernetes nodes".to_owned()),
        ("version", source.version.to_owned()),
        ("created", source.time.to_string()),
        ("licenses", "Apache-2.0 OR MIT".to_owned()),
    ];
    labels.extend(source.revision.clone().map(|revision| ("revision", revision)));
    let add = |image: Image, (key, value)| image.label(format!("org.opencontainers.image.{key}"), value);
    labels.into_iter().fold(image, add)
}
