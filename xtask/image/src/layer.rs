//! The one layer of an image: a tar file.

use std::io::{self, Write};

use anyhow::Context;
use flate2::{Compression as Level, GzBuilder};
use oci_spec::image::MediaType;

use crate::archive::Blob;
use crate::image::{Compression, Image};

/// Folders that a runtime mounts over or expects. Where they exist, it need not make them.
const FOLDERS: [(&str, u32); 7] = [
    ("bin/", 0o755),
    ("etc/", 0o755),
    ("proc/", 0o755),
    ("sys/", 0o755),
    ("dev/", 0o755),
    ("tmp/", 0o1777),
    ("run/", 0o755),
];

/// A layer as it is stored, and the digest of the tar file in it (`diff_id`).
pub(crate) struct Layer {
    pub blob: Blob,
    pub diff_id: String,
}

impl Layer {
    pub fn of(image: &Image) -> anyhow::Result<Layer> {
        let tar = Blob::new(MediaType::ImageLayer, files(image)?)?;
        let diff_id = tar.digest();
        let blob = match image.compression {
            Compression::None => tar,
            Compression::Gzip => Blob::new(MediaType::ImageLayerGzip, gzip(&tar.bytes)?)?,
        };
        Ok(Layer { blob, diff_id })
    }
}

fn files(image: &Image) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (folder, mode) in FOLDERS {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        tar.append_data(&mut header, folder, io::empty())?;
    }
    for (path, bytes) in &image.files {
        append(&mut tar, path, bytes, 0o644)?;
    }
    for (path, program) in &image.programs {
        let bytes = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
        append(&mut tar, path, &bytes, 0o755)?;
    }
    Ok(tar.into_inner()?)
}

/// Adds a file that is owned by root and dated 1970.
pub(crate) fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("add {path} to an archive"))
}

/// The header has neither a time nor a file's name.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = GzBuilder::new().mtime(0).write(Vec::new(), Level::best());
    writer.write_all(bytes)?;
    writer.finish()
}
