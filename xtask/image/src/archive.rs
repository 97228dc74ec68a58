//! The archive: an image layout in a tar file, as `ctr images import`, `docker load`, `podman load` and skopeo read it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, ensure};
use oci_spec::image::{
    ANNOTATION_REF_NAME, ConfigBuilder, Descriptor, ImageConfiguration, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
    Sha256Digest,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::image::Image;
use crate::layer::{Layer, append};

/// What containerd and Docker call the image.
const ANNOTATION_CONTAINERD: &str = "io.containerd.image.name";

/// Writes an archive with one image, for one platform or several. Fails if the images have different names, or a program
/// cannot be read.
pub fn write(images: &[Image], archive: &Path) -> anyhow::Result<()> {
    let name = images.first().context("an archive needs an image")?.name();
    ensure!(images.iter().all(|image| image.name() == name), "an archive has one image, for each platform");
    let mut blobs = BTreeMap::new();
    let mut manifests = Vec::new();
    for image in images {
        manifests.push(add_image(image, &mut blobs)?);
    }
    let mut entry = match <[Descriptor; 1]>::try_from(manifests) {
        Ok([manifest]) => manifest,
        Err(manifests) => add(index_of(manifests)?, &mut blobs)?,
    };
    entry.set_annotations(Some(HashMap::from([
        (ANNOTATION_CONTAINERD.to_owned(), name.to_owned()),
        (ANNOTATION_REF_NAME.to_owned(), tag_of(name).to_owned()),
    ])));
    let index = index_of(vec![entry])?;
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;

    let file = File::create(archive).with_context(|| format!("write {}", archive.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    append(&mut tar, "oci-layout", &to_json(&layout)?, 0o644)?;
    append(&mut tar, "index.json", &index.bytes, 0o644)?;
    for (digest, bytes) in &blobs {
        append(&mut tar, &format!("blobs/{}", digest.replace(':', "/")), bytes, 0o644)?;
    }
    tar.into_inner()?.flush().with_context(|| format!("write {}", archive.display()))
}

/// Adds layer, configuration and manifest of an image; returns the manifest's descriptor.
fn add_image(image: &Image, blobs: &mut BTreeMap<String, Vec<u8>>) -> anyhow::Result<Descriptor> {
    let layer = Layer::of(image)?;
    let config = Blob::of(MediaType::ImageConfig, &configuration(image, &layer)?)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(add(config, blobs)?)
        .layers([add(layer.blob, blobs)?])
        .build()?;
    let mut descriptor = add(Blob::of(MediaType::ImageManifest, &manifest)?, blobs)?;
    let platform = PlatformBuilder::default().architecture(image.arch.clone()).os(Os::Linux).build()?;
    descriptor.set_platform(Some(platform));
    Ok(descriptor)
}

fn configuration(image: &Image, layer: &Layer) -> anyhow::Result<ImageConfiguration> {
    // An image's id is its configuration's digest, and CRI reports one name for an id: without this label, CRI could report
    // two images of the same content by either name.
    let mut labels = HashMap::from([(ANNOTATION_REF_NAME.to_owned(), image.name.clone())]);
    labels.extend(image.labels.clone());
    let mut config = ConfigBuilder::default()
        .entrypoint(image.entrypoint.clone())
        .env(["PATH=/bin".to_owned()])
        .working_dir("/")
        .labels(labels);
    if let Some(user) = &image.user {
        config = config.user(user);
    }
    Ok(ImageConfigurationBuilder::default()
        .architecture(image.arch.clone())
        .os(Os::Linux)
        .config(config.build()?)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids([layer.diff_id.clone()]).build()?)
        .build()?)
}

fn index_of(manifests: Vec<Descriptor>) -> anyhow::Result<Blob> {
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?;
    Blob::of(MediaType::ImageIndex, &index)
}

fn add(blob: Blob, blobs: &mut BTreeMap<String, Vec<u8>>) -> anyhow::Result<Descriptor> {
    let digest = blob.digest();
    let descriptor =
        Descriptor::new(blob.media_type, blob.bytes.len() as u64, Sha256Digest::from_str(&blob.hex)?);
    blobs.insert(digest, blob.bytes);
    Ok(descriptor)
}

/// The tag of an image's name.
fn tag_of(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => "latest",
    }
}

/// By way of a [`serde_json::Value`], whose objects are sorted: labels and annotations are hash tables.
fn to_json(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

/// Bytes and their digest, which is computed once: a layer is large.
pub(crate) struct Blob {
    media_type: MediaType,
    pub bytes: Vec<u8>,
    hex: String,
}

impl Blob {
    pub fn new(media_type: MediaType, bytes: Vec<u8>) -> anyhow::Result<Blob> {
        let hex = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Blob { media_type, bytes, hex })
    }

    fn of(media_type: MediaType, value: &impl Serialize) -> anyhow::Result<Blob> {
        Blob::new(media_type, to_json(value)?)
    }

    /// `sha256:` and the hexadecimal digest.
    pub fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Compression;
    use oci_spec::image::{Arch, ImageIndex, ImageManifest};
    use std::io::Read;

    fn image(folder: &Path, arch: Arch) -> Image {
        let program = folder.join("program");
        std::fs::write(&program, b"\x7fELF".repeat(1000)).unwrap();
        let image = Image::new("registry.test:5000/shop/app:1.2").arch(arch).entrypoint(["/app"]).user("0:0");
        let image = image.binary_at("app", program).file("notes.txt", "text").compression(Compression::Gzip);
        (0..20).fold(image, |image, index| image.label(format!("label-{index}"), "value"))
    }

    fn written(folder: &Path, images: &[Image]) -> BTreeMap<String, Vec<u8>> {
        let path = folder.join("archive.tar");
        write(images, &path).unwrap();
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let read = |mut entry: tar::Entry<'_, File>| {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        };
        archive.entries().unwrap().map(|entry| read(entry.unwrap())).collect()
    }

    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Descriptor) -> &'a [u8] {
        let bytes = &files[&format!("blobs/{}", descriptor.digest().to_string().replace(':', "/"))];
        assert_eq!(bytes.len() as u64, descriptor.size());
        let blob = Blob::new(descriptor.media_type().clone(), bytes.clone()).unwrap();
        assert_eq!(blob.digest(), descriptor.digest().to_string());
        bytes
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let archive = || {
            write(&[image(folder.path(), Arch::Amd64)], &folder.path().join("a.tar")).unwrap();
            std::fs::read(folder.path().join("a.tar")).unwrap()
        };
        let first = archive();
        // Labels and annotations are hash tables: another order in each table.
        (0..10).for_each(|_| assert!(archive() == first));
    }

    #[test]
    fn an_archive_leads_from_its_index_to_the_files_of_the_layer() {
        let folder = tempfile::tempdir().unwrap();
        let files = written(folder.path(), &[image(folder.path(), Arch::Amd64)]);
        let index = ImageIndex::from_reader(&files["index.json"][..]).unwrap();
        let [entry] = &index.manifests()[..] else { panic!("{index:?}") };
        let annotations = entry.annotations().as_ref().unwrap();
        assert_eq!(annotations[ANNOTATION_CONTAINERD], "registry.test:5000/shop/app:1.2");
        assert_eq!(annotations[ANNOTATION_REF_NAME], "1.2");
        let manifest = ImageManifest::from_reader(blob(&files, entry)).unwrap();
        let config = ImageConfiguration::from_reader(blob(&files, manifest.config())).unwrap();
        assert_eq!(config.labels_of_config().unwrap()["label-7"], "value");
        assert_eq!(config.config().as_ref().unwrap().user().as_deref(), Some("0:0"));
        let mut layer = Vec::new();
        let packed = blob(&files, &manifest.layers()[0]);
        flate2::read::GzDecoder::new(packed).read_to_end(&mut layer).unwrap();
        let digest = Blob::new(MediaType::ImageLayer, layer.clone()).unwrap().digest();
        assert_eq!(config.rootfs().diff_ids(), &[digest]);
        let mut tar = tar::Archive::new(&layer[..]);
        let find = |entry: &tar::Entry<'_, &[u8]>| entry.path().unwrap().as_os_str() == "app";
        let app = tar.entries().unwrap().map(Result::unwrap).find(find).unwrap();
        assert_eq!(
            (app.header().mode().unwrap(), app.header().mtime().unwrap(), app.size()),
            (0o755, 0, 4000)
        );
    }

    #[test]
    fn images_of_several_platforms_are_in_one_index() {
        let folder = tempfile::tempdir().unwrap();
        let images = [image(folder.path(), Arch::Amd64), image(folder.path(), Arch::ARM64)];
        let files = written(folder.path(), &images);
        let top = ImageIndex::from_reader(&files["index.json"][..]).unwrap();
        let index = ImageIndex::from_reader(blob(&files, &top.manifests()[0])).unwrap();
        let platforms: Vec<String> = index
            .manifests()
            .iter()
            .map(|entry| entry.platform().as_ref().unwrap().architecture().to_string())
            .collect();
        assert_eq!(platforms, ["amd64", "arm64"]);
        let other = Image::new("registry.test/other:1");
        assert!(write(&[images[0].clone(), other], &folder.path().join("b.tar")).is_err());
    }

    #[test]
    fn a_name_without_a_tag_has_the_tag_latest() {
        assert_eq!(["a:1", "r:5000/a", "r:5000/a:2", "a"].map(tag_of), ["1", "latest", "2", "latest"]);
    }
}
