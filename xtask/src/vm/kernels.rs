//! Which kernels the lab boots, and where they come from: Debian's archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::archive::{self, ARCH, Apt};
use crate::{setup, sh};

/// A kernel of the table.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The name that a user types, and the column's heading.
    pub name: &'static str,
    /// `uname -r`, and part of the packages' names.
    release: &'static str,
    /// The packages' version.
    version: &'static str,
    /// The packages' names, without the `-RELEASE` at their end.
    packages: &'static [&'static str],
}

/// The pins. When the archive has newer versions only (in sid, every few days), the newest release of the same series is
/// used, and the run reports it: then the pin has to be updated here.
pub const KERNELS: [Kernel; 5] = [
    // bullseye's last point release but one: mark_victim still passes only a thread id
    Kernel {
        name: "5.10.218",
        release: "5.10.0-30-amd64",
        version: "5.10.218-1",
        packages: &["linux-image"],
    },
    // bullseye; security
    Kernel { name: "5.10", release: "5.10.0-46-amd64", version: "5.10.262-1", packages: &["linux-image"] },
    // bookworm; security
    Kernel { name: "6.1", release: "6.1.0-56-amd64", version: "6.1.192-2", packages: &["linux-image"] },
    // bookworm; security
    Kernel {
        name: "6.12",
        release: "6.12.117+deb12-amd64",
        version: "6.12.117-1~deb12u1",
        packages: &["linux-image"],
    },
    // sid
    Kernel {
        name: "7.2",
        release: "7.2.13+deb14-amd64",
        version: "7.2.13-1",
        packages: &["linux-base", "linux-binary", "linux-modules"],
    },
];

const SOURCES: [&str; 5] = [
    "http://deb.debian.org/debian bullseye main",
    "http://deb.debian.org/debian-security bullseye-security main",
    "http://deb.debian.org/debian bookworm main",
    "http://deb.debian.org/debian-security bookworm-security main",
    "http://deb.debian.org/debian sid main",
];

/// The files of a kernel's packages that a node needs: 9p and overlay for its root, and the network of pods.
const WANTED: [&str; 12] = [
    "*/vmlinuz*",
    "*/modules.builtin*",
    "*/modules.order",
    "*/kernel/net/*",
    "*/kernel/lib/*",
    "*/kernel/crypto/*",
    "*/kernel/fs/9p/*",
    "*/kernel/fs/netfs/*",
    "*/kernel/fs/fscache/*",
    "*/kernel/fs/overlayfs/*",
    "*/kernel/drivers/virtio/*",
    "*/kernel/drivers/net/veth*",
];

/// A kernel on this machine's disk.
#[derive(Clone, Debug)]
pub struct LocalKernel {
    pub name: &'static str,
    pub release: String,
    pub image: PathBuf,
    /// Holds `lib/modules/RELEASE`.
    pub base: PathBuf,
    /// Whether it is another one than the pinned one.
    pub drifted: bool,
}

/// Finds a kernel by the name that the user typed.
pub fn by_name(name: &str) -> Result<Kernel> {
    let known = || KERNELS.map(|kernel| kernel.name).join(", ");
    KERNELS
        .into_iter()
        .find(|kernel| kernel.name == name)
        .with_context(|| format!("no kernel {name} in the table; there are {}, running, and all", known()))
}

/// Takes the kernels from the cache, or downloads them.
pub fn fetch(kernels: &[Kernel]) -> Result<Vec<LocalKernel>> {
    let cache = setup::cache_dir()?.join("kernels");
    let pinned = |kernel: &Kernel| cached(kernel, kernel.release, kernel.version, &cache);
    if let Some(all) = kernels.iter().map(pinned).collect() {
        return Ok(all);
    }
    let apt = Apt::new(&cache.join("apt"), &SOURCES)?;
    let local =
        kernels.iter().map(|kernel| pinned(kernel).map_or_else(|| download(kernel, &apt, &cache), Ok));
    let local = local.collect();
    apt.remove();
    local
}

fn download(kernel: &Kernel, apt: &Apt, cache: &Path) -> Result<LocalKernel> {
    let (release, version) = available(apt, kernel)?;
    if let Some(local) = cached(kernel, &release, &version, cache) {
        return Ok(local);
    }
    let folder = cache.join(format!("{release}_{version}"));
    let staging = cache.join(format!(".{release}_{version}.new"));
    let _ = fs::remove_dir_all(&staging);
    fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
    for package in kernel.packages {
        let name = format!("{package}-{release}");
        sh::progress(format_args!("fetching {name} {version}"));
        apt.download(&[&format!("{name}={version}")], &staging)?;
    }
    unpack(&staging, &release)?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&staging, &folder).with_context(|| format!("make {}", folder.display()))?;
    cached(kernel, &release, &version, cache).context("the packages hold no kernel")
}

fn cached(kernel: &Kernel, release: &str, version: &str, cache: &Path) -> Option<LocalKernel> {
    let base = cache.join(format!("{release}_{version}"));
    let image = base.join("vmlinuz");
    image.is_file().then(|| LocalKernel {
        name: kernel.name,
        release: release.to_owned(),
        image,
        base,
        drifted: (release, version) != (kernel.release, kernel.version),
    })
}

/// Turns the packages in `folder` into `vmlinuz` and `lib/modules/RELEASE`.
fn unpack(folder: &Path, release: &str) -> Result<()> {
    for package in archive::packages_in(folder)? {
        unpack_wanted(&package, folder)?;
    }
    // /usr/lib/modules since usrmerge reached the packages.
    if folder.join("usr/lib/modules").is_dir() {
        fs::create_dir_all(folder.join("lib"))?;
        fs::rename(folder.join("usr/lib/modules"), folder.join("lib/modules"))?;
    }
    let modules = folder.join("lib/modules").join(release);
    let images = [folder.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.iter().find(|path| path.is_file()).context("the packages hold no vmlinuz")?;
    fs::rename(image, folder.join("vmlinuz"))?;
    ensure!(modules.join("kernel/fs/9p").is_dir(), "the packages hold no 9p module for {release}");
    sh::capture(Command::new("/sbin/depmod").arg("-b").arg(folder).arg(release)).map(drop)
}

/// Unpacks what is [`WANTED`] of a package file into `folder`, and removes it.
fn unpack_wanted(package: &Path, folder: &Path) -> Result<()> {
    let mut contents = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--wildcards", "--no-anchored", "-C"]).arg(folder).args(WANTED);
    if let Some(from) = contents.stdout.take() {
        tar.stdin(from);
    }
    // tar fails when a pattern matches nothing, as some do in each package. The caller looks for the files that it needs.
    let _ = tar.stderr(Stdio::null()).status().context("start tar")?;
    contents.wait()?;
    fs::remove_file(package).with_context(|| format!("remove {}", package.display()))
}

/// The pinned release and version; if the archive no longer has it, the newest of its series.
fn available(apt: &Apt, kernel: &Kernel) -> Result<(String, String)> {
    let last = kernel.packages.last().context("a kernel has packages")?;
    let versions = |release: &str| -> Result<Vec<String>> {
        let listing = sh::capture(apt.command("apt-cache").args(["madison", &format!("{last}-{release}")]))?;
        Ok(listing.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect())
    };
    let pinned = versions(kernel.release)?;
    if pinned.iter().any(|version| version == kernel.version) {
        return Ok((kernel.release.to_owned(), kernel.version.to_owned()));
    }
    let prefix = format!("{last}-{}.", kernel.name.split('.').next().unwrap_or(kernel.name));
    let names = sh::capture(apt.command("apt-cache").args(["pkgnames", &prefix]))?;
    let mut releases: Vec<&str> = names
        .lines()
        .filter_map(|name| name.strip_prefix(last)?.strip_prefix('-'))
        .filter(|release| is_plain(release) && same_series(release, kernel))
        .collect();
    releases.sort_by_key(|release| numbers(release));
    let Some(release) = releases.last() else {
        bail!(
            "Debian's archive has neither {} {} nor another {} kernel",
            kernel.release,
            kernel.version,
            kernel.name
        );
    };
    let version = versions(release)?.into_iter().next().context("a package has a version")?;
    sh::progress(format_args!(
        "Debian's archive no longer has {} {}: using {release} {version}; pin it in xtask/src/vm/kernels.rs",
        kernel.release, kernel.version
    ));
    Ok(((*release).to_owned(), version))
}

/// A kernel for every PC: neither -cloud nor -rt, no backport, not unsigned.
fn is_plain(release: &str) -> bool {
    let stem = release.strip_suffix(ARCH).and_then(|stem| stem.strip_suffix('-'));
    stem.is_some_and(|stem| {
        !["cloud", "rt", "unsigned", "deb11", "dbg"].iter().any(|flavour| stem.contains(flavour))
    })
}

/// 6.1.0-57 belongs to 6.1. A point release has no successor. sid's series is everything from 7 on.
fn same_series(release: &str, kernel: &Kernel) -> bool {
    let (release, series) = (numbers(release), numbers(kernel.name));
    match kernel.packages.len() {
        1 => series.len() == 2 && release.get(..2) == series.get(..2),
        _ => release.first() >= series.first(),
    }
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_release_of_the_series_is_accepted_and_flavours_are_not() {
        let [point, old, stable, _, sid] = KERNELS;
        assert!(same_series("5.10.0-47-amd64", &old) && !same_series("5.1.0-1-amd64", &old));
        assert!(!same_series("5.10.0-47-amd64", &point));
        assert!(same_series("6.1.0-57-amd64", &stable) && !same_series("6.12.1-amd64", &stable));
        assert!(same_series("7.3.1+deb14-amd64", &sid) && !same_series("6.12.1-amd64", &sid));
        assert!(is_plain("6.1.0-57-amd64") && is_plain("7.2.13+deb14-amd64"));
        for other in
            ["6.1.0-57-cloud-amd64", "6.1.0-57-rt-amd64", "6.1.0-57-amd64-dbg", "6.1.0-0.deb11.52-amd64"]
        {
            assert!(!is_plain(other), "{other}");
        }
        assert!(numbers("6.12.117+deb12-amd64") > numbers("6.12.99+deb12-amd64"));
    }

    #[test]
    fn the_error_about_an_unknown_name_lists_the_known_ones() {
        let error = by_name("4.19").unwrap_err().to_string();
        assert!(error.contains("5.10.218, 5.10, 6.1, 6.12, 7.2, running"), "{error}");
    }
}
