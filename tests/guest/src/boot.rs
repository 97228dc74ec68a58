//! Boots a lab machine from its initramfs: loads modules, mounts the host's root read-only with a tmpfs over it, and
//! cgroup v2.
//!
//! tracefs, debugfs and bpffs stay unmounted on purpose: podopsy must not need them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, sethostname};

/// The tests' environment.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    // Tests repeat things less often on an emulated machine.
    ("PODOPSY_EMULATED", "1"),
    // Not /tmp: the project itself may be there, and containerd's overlays cannot be made on the root's overlay.
    ("TMPDIR", "/run/tmp"),
];

/// Mount tag of the host's root.
const SHARE: &str = "host0";

pub fn boot(modules: Option<&Path>) -> Result<()> {
    for (what, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_at(what, what, at, MsFlags::empty(), "")?;
    }
    load_modules(Path::new("/modules"))?;
    new_root("/newroot")?;
    for (what, at, options) in [
        ("tmpfs", "/run", "mode=755"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
        ("cgroup2", "/sys/fs/cgroup", ""),
    ] {
        fs::create_dir_all(at).with_context(|| format!("make {at}"))?;
        mount_at(what, what, at, MsFlags::empty(), options)?;
    }
    fs::create_dir("/run/tmp").context("make /run/tmp")?;
    for controller in ["+cpuset", "+cpu", "+io", "+memory", "+pids"] {
        // Tests that need a missing controller fail and name it.
        if let Err(error) = fs::write("/sys/fs/cgroup/cgroup.subtree_control", controller) {
            eprintln!("podopsy-guest: {controller}: {error}");
        }
    }
    sethostname("lab").context("set the host's name")?;
    if let Some(modules) = modules {
        // From here on, the kernel loads modules (bridge, veth, nf_tables) on demand by modprobe.
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
        let release = release.trim();
        fs::create_dir_all("/lib/modules").context("make /lib/modules")?;
        let at = Path::new("/lib/modules").join(release);
        symlink(modules.join(release), &at).with_context(|| format!("make {}", at.display()))?;
    }
    let up = Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(up.success(), "ip link set lo up: {up}");
    Ok(())
}

/// Loads every module of the folder in the order of their names: the host has numbered them by dependency.
fn load_modules(folder: &Path) -> Result<()> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    for path in files {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("load {}", path.display())),
        }
    }
    Ok(())
}

/// Makes an overlay of the host's root (lower) and a tmpfs (upper), and changes the root to it.
fn new_root(at: &str) -> Result<()> {
    for folder in ["/lower", "/upper", at] {
        fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    }
    // Changes on the host need not be seen by the machine: what was read may be cached.
    let share = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";
    mount_at(SHARE, "9p", "/lower", MsFlags::MS_RDONLY, share)?;
    mount_at("tmpfs", "tmpfs", "/upper", MsFlags::empty(), "mode=755")?;
    for folder in ["/upper/data", "/upper/work"] {
        fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    }
    let layers = "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work";
    mount_at("overlay", "overlay", at, MsFlags::empty(), layers)?;
    for folder in ["/proc", "/sys", "/dev"] {
        mount_at(folder, "", &format!("{at}{folder}"), MsFlags::MS_MOVE, "")?;
    }
    chdir(at).with_context(|| format!("go to {at}"))?;
    mount_at(".", "", "/", MsFlags::MS_MOVE, "")?;
    chroot(".").and_then(|()| chdir("/")).context("change the root")
}

fn mount_at(what: &str, kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(what), at, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} {what} at {at} ({options})"))
}
