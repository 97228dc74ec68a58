//! Whole-room tests: live, dead and hostile processes.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

/// Set for the processes that tests start.
const SLEEP: &str = "PODOPSY_TEST_SLEEP";

/// Kills its process when it goes, whatever the test did.
struct Running(Child);

impl Running {
    fn start(program: &Path, args: &[&str]) -> Self {
        Self(Command::new(program).args(args).env(SLEEP, "1").stdout(Stdio::piped()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[inline(never)]
fn a_function_with_a_name() -> u64 {
    std::hint::black_box(7)
}

/// /proc/PID/map_files wants CAP_CHECKPOINT_RESTORE, which podopsy has wherever it works in full.
fn needs_root() {
    assert!(nix::unistd::geteuid().is_root(), "run this test as root: sudo -E cargo test -p podopsy-agent");
}

fn at(pid: u32, address: u64) -> UserAddress {
    UserAddress { pid, address, is_return: false }
}

fn own_address() -> u64 {
    a_function_with_a_name as fn() -> u64 as usize as u64
}

/// Where a mapped file's executable code begins in a process: its first executable area with this file name.
fn code_of(pid: u32, name: &str) -> maps::Area {
    let areas = maps::read(pid).unwrap();
    areas.areas.into_iter().find(|area| area.path.ends_with(name.as_bytes())).expect("mapped")
}

#[test]
fn a_function_of_a_living_process_has_its_name_line_offset_and_build_id() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(pid);
    let frames = symbolizer.user(at(pid, own_address()));
    let frame = frames.last().unwrap();
    assert!(frame.function.as_ref().unwrap().contains("a_function_with_a_name"), "{frame:?}");
    assert!(frame.source.as_ref().unwrap().0.ends_with("symbolize/tests.rs"), "{frame:?}");
    let area = maps::read(pid).unwrap().find(own_address()).unwrap().clone();
    assert_eq!(frame.offset, own_address() - area.start + area.offset);
    assert_eq!(frame.module.as_deref(), Some(escape(&area)).as_deref());
    let build_id = frame.build_id.clone().unwrap();
    assert!(symbolizer.mappings().iter().any(|mapping| mapping.build_id.as_ref() == Some(&build_id)));

    // A return address is looked up one byte before: just after the function's first byte it is still inside.
    let back = symbolizer.user(UserAddress { pid, address: own_address() + 1, is_return: true });
    assert_eq!(back, frames);

    let mut id = [0; 20];
    for (byte, digits) in id.iter_mut().zip(build_id.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
    }
    assert_eq!(symbolizer.build_id(&id, frame.offset, false), frames);
    assert_eq!(symbolizer.build_id(&[0xee; 20], 1, false)[0].function, None);
    assert_eq!(symbolizer.losses()["build_id_unknown"], 1);
}

fn escape(area: &maps::Area) -> String {
    podopsy_model::text::escape_bytes(area.file_path())
}

#[inline(always)]
fn an_inlined_function(x: u64) -> u64 {
    std::hint::black_box(x) ^ 31
}

#[inline(never)]
fn a_function_that_inlines(x: u64) -> u64 {
    an_inlined_function(std::hint::black_box(x)).wrapping_add(1)
}

#[test]
fn inlined_functions_come_before_the_one_they_are_in() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(pid);
    let start = a_function_that_inlines as fn(u64) -> u64 as usize as u64;
    let mut stacks = (0..64).map(|byte| symbolizer.user(at(pid, start + byte)));
    // What it inlines itself, black_box, may come before it.
    let is_it = |frames: &Arc<[Frame]>| {
        frames.len() > 1
            && frames[0].function.as_ref().is_some_and(|name| name.contains("an_inlined_function"))
    };
    let frames = stacks.find(is_it).expect("the inlined function at no address");
    let (inner, outer) = (&frames[0], &frames[frames.len() - 1]);
    assert!(inner.inlined, "{frames:?}");
    assert!(
        !outer.inlined && outer.function.as_ref().unwrap().contains("a_function_that_inlines"),
        "{frames:?}"
    );
    assert_eq!(inner.offset, outer.offset);
    // Each has the line that it stands at itself: the outer one, the call.
    assert!(inner.source.as_ref().unwrap().1 < outer.source.as_ref().unwrap().1, "{frames:?}");
}

/// In a process of its own: a child that another test starts meanwhile would inherit our descriptor, and what is open for
/// writing is not run (ETXTBSY).
fn copy(program: &Path, to: &Path) {
    let copied = Command::new("cp").arg(program).arg(to).status().unwrap();
    assert!(copied.success(), "{copied}");
}

#[test]
fn the_dead_are_symbolized_even_when_their_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("victim");
    copy(&std::env::current_exe().unwrap(), &program);
    let own = maps::read(std::process::id()).unwrap().find(own_address()).unwrap().clone();
    let offset = own_address() - own.start + own.offset;

    let mut symbolizer = Symbolizer::new();
    let pid = {
        let mut victim = Running::start(&program, &["--exact", "symbolize::tests::sleeper", "--nocapture"]);
        wait_for_line(&mut victim.0);
        symbolizer.see_process(victim.pid());
        victim.pid()
    };
    assert!(!Path::new(&format!("/proc/{pid}/maps")).exists());
    std::fs::remove_file(&program).unwrap();
    let mapping =
        symbolizer.mappings().into_iter().find(|mapping| mapping.name.ends_with("/victim")).unwrap();
    let frames = symbolizer.user(at(pid, mapping.start + offset - mapping.file_offset));
    let frame = frames.last().unwrap();
    assert!(
        frame.function.as_ref().unwrap().contains("a_function_with_a_name"),
        "{frame:?} {:?}",
        symbolizer.losses()
    );
    assert_eq!(frame.source.as_ref().map(|(file, _)| file.ends_with("tests.rs")), Some(true));
}

#[test]
fn one_file_of_many_containers_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let own = maps::read(std::process::id()).unwrap().find(own_address()).unwrap().clone();
    let offset = own_address() - own.start + own.offset;
    let mut symbolizer = Symbolizer::new();
    for name in ["one", "two", "three"] {
        let program = dir.path().join(name);
        copy(&std::env::current_exe().unwrap(), &program);
        let mut victim = Running::start(&program, &["--exact", "symbolize::tests::sleeper", "--nocapture"]);
        wait_for_line(&mut victim.0);
        symbolizer.see_process(victim.pid());
        let mapping = symbolizer.mappings().into_iter().find(|mapping| mapping.name.ends_with(name)).unwrap();
        let frames = symbolizer.user(at(victim.pid(), mapping.start + offset - mapping.file_offset));
        let frame = frames.last().unwrap();
        assert!(frame.function.as_ref().unwrap().contains("a_function_with_a_name"), "{frame:?}");
        assert!(frame.module.as_ref().unwrap().ends_with(name), "each has its own name: {frame:?}");
    }
    assert_eq!(symbolizer.files.copies(), 1);
}

/// What the victim above runs; as a test of its own it has nothing to do.
#[test]
fn sleeper() {
    if std::env::var_os(SLEEP).is_some() {
        println!("sleeping");
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

fn wait_for_line(child: &mut Child) {
    use std::io::BufRead;
    let mut lines = std::io::BufReader::new(child.stdout.as_mut().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("sleeping")).unwrap().unwrap();
}

#[test]
fn a_deleted_executable_is_opened_all_the_same() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("napper");
    copy(Path::new("/bin/sleep"), &program);
    let napper = Running::start(&program, &["60"]);
    // exec has happened once the mapping is there.
    while !maps::read(napper.pid())
        .is_ok_and(|areas| areas.areas.iter().any(|area| area.path.ends_with(b"/napper")))
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::fs::remove_file(&program).unwrap();
    // Something else at the same place: a FIFO, which would hang whoever opens it.
    nix::unistd::mkfifo(&program, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(napper.pid());
    let area = code_of(napper.pid(), "napper (deleted)");
    let frames = symbolizer.user(at(napper.pid(), area.start));
    assert!(frames[0].module.as_ref().unwrap().ends_with("/napper"), "{frames:?}");
    assert!(frames[0].build_id.is_some(), "{:?}", symbolizer.losses());
}

/// As in a container: the path means nothing here, and here another file is at it.
#[test]
fn an_executable_in_another_mount_namespace_is_the_one_that_is_opened() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hidden");
    std::fs::write(&program, "not the one that runs").unwrap();
    let script = "mount -t tmpfs none \"$0\" && cp /bin/sleep \"$0/hidden\" && exec \"$0/hidden\" 60";
    let place = dir.path().to_str().unwrap();
    let hidden = Running::start(Path::new("/usr/bin/unshare"), &["-m", "sh", "-c", script, place]);
    while !maps::read(hidden.pid())
        .is_ok_and(|areas| areas.areas.iter().any(|area| area.path.ends_with(b"/hidden")))
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(hidden.pid());
    let area = code_of(hidden.pid(), "/hidden");
    let frame = symbolizer.user(at(hidden.pid(), area.start))[0].clone();
    let sleep = elf::layout(&File::open("/bin/sleep").unwrap()).unwrap();
    let build_id: String = sleep.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(frame.build_id.as_deref(), Some(build_id.as_str()), "{:?}", symbolizer.losses());
}

#[test]
fn addresses_without_a_file_say_so() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(pid);
    assert_eq!(symbolizer.user(at(pid, 0x10))[0].module, None);
    let vdso = code_of(pid, "[vdso]");
    assert_eq!(symbolizer.user(at(pid, vdso.start + 0x100))[0].module.as_deref(), Some("[vdso]"));
    assert_eq!(symbolizer.losses()["no_mapping"], 1);
    assert_eq!(symbolizer.user(at(u32::MAX, 0x10)).len(), 1);
    symbolizer.see_process(u32::MAX);
    assert_eq!((symbolizer.losses()["process_unknown"], symbolizer.losses()["process_gone"]), (1, 1));
}

/// The whole way: an executable area without a file, in a process that writes a perf map, then dies.
#[test]
fn code_made_at_run_time_has_the_name_that_its_runtime_gave_it() {
    let script = "import mmap, os, sys\n\
        code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC)\n\
        print('sleeping', flush=True)\nsys.stdin.read()";
    let mut python = Running(
        Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3"),
    );
    wait_for_line(&mut python.0);
    let pid = python.pid();
    let areas = maps::read(pid).unwrap();
    let area = areas.areas.iter().find(|area| area.path.is_empty()).expect("no anonymous code");
    let map = tempfile::Builder::new()
        .prefix(&format!("perf-{pid}"))
        .suffix(".map")
        .rand_bytes(0)
        .tempfile_in("/tmp")
        .unwrap();
    writeln!(map.as_file(), "{:x} 100 jitted(handler)", area.start).unwrap();
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(pid);
    drop((python, map));
    let frame = symbolizer.user(at(pid, area.start + 0x10))[0].clone();
    assert_eq!(
        (frame.function.as_deref(), frame.module.as_deref()),
        (Some("jitted(handler)"), Some("[anonymous]"))
    );
    assert_eq!(symbolizer.user(at(pid, area.start + 0x200))[0].function, None);
    assert_eq!(symbolizer.losses()["anonymous_code"], 1);
}

#[test]
fn kernel_addresses_come_from_kallsyms() {
    let table = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let line = table.lines().find(|line| line.ends_with(" T schedule")).expect("kallsyms has no schedule");
    let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    let mut symbolizer = Symbolizer::new();
    let frame = symbolizer.kernel(address + 1, true)[0].clone();
    if address == 0 {
        assert_eq!(symbolizer.losses()["kernel_addresses_hidden"], 1);
    } else {
        assert_eq!(
            (frame.function.as_deref(), frame.module.as_deref()),
            (Some("schedule"), Some("[kernel]"))
        );
    }
}

#[test]
fn the_number_of_held_files_is_bounded_and_counted() {
    let limits = files::Limits { held: 1, ..files::Limits::default() };
    let mut symbolizer = Symbolizer { files: Files::with_limits(limits), ..Symbolizer::default() };
    symbolizer.see_process(std::process::id());
    assert!(symbolizer.losses()["files_evicted"] >= 1);
    // Known still, by name and build id; only the names of functions are lost, and that is said.
    let libc = code_of(std::process::id(), "libc.so.6");
    let first = symbolizer.mappings().remove(0);
    // A segment need not begin at a page's beginning, as its mapping does.
    let frame = symbolizer.user(at(std::process::id(), first.start + 4096))[0].clone();
    assert_eq!(frame.module, Some(first.name));
    assert!(symbolizer.losses().contains_key("file_evicted"), "{:?} {libc:?}", symbolizer.losses());
}

/// As in containers of one image: overlays of one lower layer, and one of them has written to its file since.
#[test]
fn a_file_of_many_overlays_is_held_once_unless_it_was_written_to() {
    needs_root();
    let script = "cd \"$0\" && mount -t tmpfs none . && mkdir lower && cp /bin/sleep lower/app && \
        for one in a b c; do mkdir $one $one.up $one.work && \
        mount -t overlay -o lowerdir=lower,upperdir=$one.up,workdir=$one.work overlay $one || exit; done && \
        touch -r lower/app stamp && printf X | dd of=c/app bs=1 seek=16000 conv=notrunc status=none && \
        touch -r stamp c/app && for one in a b c; do $one/app 60 & done; echo sleeping; wait";
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["-m", "--kill-child", "-f", "-p", "sh", "-c", script]).arg(dir.path());
    let mut shell = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    wait_for_line(&mut shell.0);
    let runs = |name: &str| {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let path = dir.path().join(name).join("app");
        pids.find_map(|pid| {
            let areas = maps::read(pid).ok()?.areas;
            let area = areas.into_iter().find(|area| area.path == path.as_os_str().as_encoded_bytes())?;
            Some((pid, area))
        })
    };
    let mut found = |name: &str| loop {
        match runs(name) {
            Some(found) => break found,
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    let [a, b, c] = ["a", "b", "c"].map(&mut found);
    assert!(a.1.inode == b.1.inode && a.1.device != b.1.device, "{a:?} {b:?}");
    // Its number, size and time of modification are those that it had.
    let facts = |(pid, area): &(u32, maps::Area)| {
        use std::os::unix::fs::MetadataExt;
        let meta = open::mapped_file(*pid, area, maps::Ground::Other).unwrap().metadata().unwrap();
        (meta.ino(), meta.len(), meta.mtime_nsec())
    };
    assert_eq!(facts(&a), facts(&c));

    let (mut files, mut resolver, mut losses) = (Files::default(), Resolver::default(), Losses::default());
    let mut see = |files: &mut Files, (pid, area): &(u32, maps::Area)| {
        files.see(*pid, area, maps::Mounts::of(*pid).ground(area.device), &mut resolver, &mut losses)
    };
    let ids = [&a, &b, &b, &a].map(|one| see(&mut files, one));
    assert_eq!(files.open(), 1);
    assert!(ids[0] != ids[1] && ids[1] == ids[2] && ids[0] == ids[3], "each has its own name: {ids:?}");
    see(&mut files, &c);
    assert_eq!(files.open(), 2, "what was written to is another file");
    // All of them are gone but the second, which shares what the first was opened by.
    let since = std::time::Instant::now();
    assert!(files.touch(&b.1));
    files.let_go(since);
    assert_eq!((files.open(), files.is_held(ids[0]), files.touch(&c.1)), (1, true, false));
    files.let_go(std::time::Instant::now());
    assert_eq!((files.open(), files.touch(&b.1)), (0, false));
    assert_eq!(see(&mut files, &b), ids[1], "opened again, under the name that it had");
    assert_eq!(files.open(), 1);
}

#[test]
fn what_is_let_go_of_is_opened_again_while_it_runs() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.revisit_files(pid);
    let held = symbolizer.files.open();
    let since = std::time::Instant::now();
    symbolizer.revisit_files(pid);
    symbolizer.let_go(since);
    assert_eq!(symbolizer.files.open(), held, "wanted still");
    symbolizer.let_go(std::time::Instant::now());
    assert_eq!(symbolizer.files.open(), 0);
    symbolizer.revisit_files(pid);
    assert_eq!(symbolizer.files.open(), held);
    assert!(!symbolizer.losses().contains_key("files_evicted"));
}

#[test]
fn what_was_looked_up_together_is_named_without_anything_of_it_in_memory() {
    needs_root();
    let pid = std::process::id();
    let libc = code_of(pid, "libc.so.6");
    let places = [at(pid, own_address()), at(pid, libc.start + 0x1000)];
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(pid);
    symbolizer.look_up([(0xffff_ffff_8100_0000, false)], places);
    assert_eq!((symbolizer.files.copies(), symbolizer.cache.len()), (0, 2));
    let named = symbolizer.user(places[0]).last().unwrap().clone();
    assert!(named.function.unwrap().contains("a_function_with_a_name"));
    assert_eq!(symbolizer.user(places[1])[0].module.as_deref(), Some(&*escape(&libc)));
    assert_eq!(symbolizer.files.copies(), 0, "the names came from the cache");
}

#[test]
fn trimming_frees_and_forgets_nothing_that_cannot_be_had_again() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new();
    symbolizer.see_process(pid);
    let before = symbolizer.user(at(pid, own_address()));
    symbolizer.trim();
    assert_eq!(symbolizer.user(at(pid, own_address())), before);
}

/// Hostile ELF: none may panic, hang or be believed. Deterministic, so that a failure comes back.
#[test]
fn hostile_elf_files_do_no_harm() {
    let honest = {
        // A small honest file to break: this process's vDSO, which is ELF with symbols, notes and segments.
        let area = code_of(std::process::id(), "[vdso]");
        elf::read_at(
            &File::open("/proc/self/mem").unwrap(),
            area.start,
            usize::try_from(area.end - area.start).unwrap(),
        )
        .unwrap()
    };
    // The same each time: a failure can be had again.
    let mut random = fastrand::Rng::with_seed(1);
    let mut corpus = vec![Vec::new(), b"\x7fELF".to_vec(), vec![0xff; 4096]];
    corpus.extend((0..honest.len()).step_by(97).map(|len| honest[..len].to_vec()));
    for _ in 0..400 {
        let mut broken = honest.clone();
        for _ in 0..random.u8(1..=16) {
            // The headers and the tail (section table) are where it hurts.
            let region = if random.bool() { 0..512 } else { broken.len() - 1200..broken.len() };
            broken[random.usize(region)] = if random.u8(..3) == 0 { 0xff } else { random.u8(..) };
        }
        corpus.push(broken);
    }
    // Section sizes of 2^64 - 1, one after the other.
    let sections_at = usize::try_from(u64::from_le_bytes(honest[40..48].try_into().unwrap())).unwrap();
    for at in (sections_at + 32..honest.len().saturating_sub(8)).step_by(64) {
        let mut broken = honest.clone();
        broken[at..at + 8].fill(0xff);
        corpus.push(broken);
    }
    let (mut files, mut resolver, mut losses) = (Files::default(), Resolver::default(), Losses::default());
    for bytes in corpus {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let id = files.add("hostile", file, (0, 0, 0));
        for offset in [0, 0x800, u64::MAX] {
            if let Err(reason) = files.symbol(id, offset, &mut resolver, &mut losses) {
                losses.add(reason);
            }
        }
        files = Files::default();
    }
    let losses = losses.all();
    eprintln!("{losses:?}");
    for bad in ["symbolizer_panicked", "symbolizer_timed_out", "symbolizer_stuck"] {
        assert!(!losses.contains_key(bad), "{losses:?}");
    }
}

#[test]
fn a_file_written_over_after_first_sight_is_not_believed() {
    let mut files = Files::default();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&std::fs::read("/bin/sleep").unwrap(), 0).unwrap();
    let id = files.add("swapped", file.try_clone().unwrap(), (0, 0, 0));
    file.set_len(0).unwrap();
    let (mut resolver, mut losses) = (Resolver::default(), Losses::default());
    // Offset 0 is in a segment; what was there is gone, and reading it is no SIGBUS.
    assert_eq!(files.symbol(id, 0, &mut resolver, &mut losses), Err("file_changed"));
}

#[test]
fn the_symbolizer_can_be_handed_to_a_blocking_thread() {
    fn is_send<T: Send>() {}
    is_send::<Symbolizer>();
}
