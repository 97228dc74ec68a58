//! Container images from scratch, as archives in the OCI image layout (image-spec 1.1), written without a daemon.
//!
//! ```text
//! Image (programs, files, labels) ─ layer ─→ blobs ─┐
//! Image of another platform       ─ layer ─→ blobs ─┴→ archive: oci-layout, index.json, blobs/sha256/…
//! ```
//!
//! The same content gives the same bytes: no time, no user and no order of a hash table gets into an archive.
//!
//! Must not depend on: what is in the images, cargo, a container runtime.
#![forbid(unsafe_code)]

mod archive;
mod image;
mod layer;

pub use archive::write;
pub use image::{Compression, Image};
pub use oci_spec::image::Arch;
