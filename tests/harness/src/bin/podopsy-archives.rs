//! Writes images as OCI archives, for `cargo xtask cluster`, which must build without podopsy's crates.
//!
//! ```text
//! podopsy-archives KIND=NAME=FILE…     KIND: pause, victims, podopsy
//! ```

use std::path::Path;

use anyhow::{Context, bail};
use podopsy_harness::node::{pause_image, podopsy_image, victims_image};

fn main() -> anyhow::Result<()> {
    let progress = |line: &str| eprintln!("{line}");
    for argument in std::env::args().skip(1) {
        let parts: Vec<&str> = argument.split('=').collect();
        let [kind, name, file] = parts[..] else { bail!("{argument} is not KIND=NAME=FILE") };
        let image = match kind {
            "pause" => pause_image(name, &podopsy_harness::victims(&progress)?),
            "victims" => victims_image(name, &podopsy_harness::victims(&progress)?),
            "podopsy" => podopsy_image(name, podopsy_harness::podopsy(&progress)?),
            _ => bail!("no image of kind {kind}: there are pause, victims, podopsy"),
        };
        ::podopsy_image::write(&[image], Path::new(file)).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}
