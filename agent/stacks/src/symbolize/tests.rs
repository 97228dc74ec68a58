//! Tests of the whole symbolizer, with live, ended and hostile processes.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use podopsy_worker::FileHandle;

/// An environment variable that is set for the processes that tests start.
const SLEEP: &str = "PODOPSY_TEST_SLEEP";

/// A process that is killed when the value is dropped, also after a failed test.
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

/// /proc/PID/map_files needs CAP_CHECKPOINT_RESTORE, which podopsy has wherever all of it works.
fn needs_root() {
    assert!(nix::unistd::geteuid().is_root(), "run this test as root: sudo -E cargo test -p podopsy-stacks");
}

/// Helpers that are threads of the test.
fn helpers() -> Helpers {
    Helpers::in_threads()
}

fn at(pid: u32, address: u64) -> UserAddress {
    UserAddress { pid, image: ProgramImage::UNKNOWN, address, is_return: false }
}

fn own_address() -> u64 {
    a_function_with_a_name as fn() -> u64 as usize as u64
}

/// The first executable mapping of a file in a process.
fn code_of(pid: u32, name: &str) -> maps::Area {
    let areas = maps::read_in_test(pid).unwrap();
    areas.areas.into_iter().find(|area| area.path.ends_with(name.as_bytes())).expect("mapped")
}

#[test]
fn a_function_of_a_living_process_has_its_name_line_offset_and_build_id() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(pid);
    let frames = symbolizer.user_frames(at(pid, own_address()));
    let frame = frames.last().unwrap();
    assert!(frame.function.as_ref().unwrap().contains("a_function_with_a_name"), "{frame:?}");
    assert!(frame.source.as_ref().unwrap().0.ends_with("symbolize/tests.rs"), "{frame:?}");
    let area = maps::read_in_test(pid).unwrap().find(own_address()).unwrap().clone();
    assert_eq!(frame.offset, own_address() - area.start + area.offset);
    assert_eq!(frame.module.as_deref(), Some(escape(&area)).as_deref());
    let build_id = frame.build_id.clone().unwrap();
    assert!(symbolizer.mappings().iter().any(|mapping| mapping.build_id.as_ref() == Some(&build_id)));

    // A return address is looked up one byte before: the second byte of the function is still inside as a return
    // address.
    let back = symbolizer.user_frames(UserAddress { is_return: true, ..at(pid, own_address() + 1) });
    assert_eq!(back, frames);

    let mut id = [0; 20];
    for (byte, digits) in id.iter_mut().zip(build_id.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
    }
    assert_eq!(symbolizer.build_id_frames(pid, &id, frame.offset, false), frames);
    assert_eq!(symbolizer.build_id_frames(pid, &[0xee; 20], 1, false)[0].function, None);
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
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(pid);
    let start = a_function_that_inlines as fn(u64) -> u64 as usize as u64;
    let mut stacks = (0..64).map(|byte| symbolizer.user_frames(at(pid, start + byte)));
    // A function that it inlines, black_box, may come before it.
    let is_wanted = |frames: &Arc<[Frame]>| {
        frames.len() > 1
            && frames[0].function.as_ref().is_some_and(|name| name.contains("an_inlined_function"))
    };
    let frames = stacks.find(is_wanted).expect("the inlined function is at no address");
    let (inner, outer) = (&frames[0], &frames[frames.len() - 1]);
    assert!(inner.inlined, "{frames:?}");
    assert!(
        !outer.inlined && outer.function.as_ref().unwrap().contains("a_function_that_inlines"),
        "{frames:?}"
    );
    assert_eq!(inner.offset, outer.offset);
    // Each frame has a line in its own source: the outer one has that of the call.
    assert!(inner.source.as_ref().unwrap().1 < outer.source.as_ref().unwrap().1, "{frames:?}");
}

/// Copies in a process of its own. A child that another test starts meanwhile would inherit the descriptor, and a file
/// that is open for writing cannot be executed (ETXTBSY).
fn copy(program: &Path, to: &Path) {
    let copied = Command::new("cp").arg(program).arg(to).status().unwrap();
    assert!(copied.success(), "{copied}");
}

#[test]
fn a_process_that_has_ended_is_symbolized_even_if_its_file_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("victim");
    copy(&std::env::current_exe().unwrap(), &program);
    let own = maps::read_own().unwrap().find(own_address()).unwrap().clone();
    let offset = own_address() - own.start + own.offset;

    let mut symbolizer = Symbolizer::new(&helpers());
    let pid = {
        let mut victim = Running::start(&program, &["--exact", "symbolize::tests::sleeper", "--nocapture"]);
        wait_for_line(&mut victim.0);
        symbolizer.add_process(victim.pid());
        victim.pid()
    };
    assert!(!Path::new(&format!("/proc/{pid}/maps")).exists());
    std::fs::remove_file(&program).unwrap();
    let mapping =
        symbolizer.mappings().into_iter().find(|mapping| mapping.name.ends_with("/victim")).unwrap();
    let frames = symbolizer.user_frames(at(pid, mapping.start + offset - mapping.file_offset));
    let frame = frames.last().unwrap();
    assert!(
        frame.function.as_ref().unwrap().contains("a_function_with_a_name"),
        "{frame:?} {:?}",
        symbolizer.losses()
    );
    assert_eq!(frame.source.as_ref().map(|(file, _)| file.ends_with("tests.rs")), Some(true));
}

/// A copy of a program has the build id of the original, and so may any file that claims it. Names come from the file that
/// the process had mapped.
#[test]
#[ignore = "needs gcc and binutils: cargo xtask setup test"]
fn a_file_with_the_same_build_id_gives_no_names_to_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("twin.c");
    let program = |name: &str| {
        let code = format!("int {name}(void) {{ for (;;) ; }} int main(void) {{ return {name}(); }}\n");
        std::fs::write(&source, code).unwrap();
        let out = dir.path().join(name);
        let flags = ["-O0", "-no-pie", "-Wl,--build-id=0x00112233445566778899aabbccddeeff00112233"];
        let built = Command::new("gcc").args(flags).arg("-o").arg(&out).arg(&source).status().unwrap();
        assert!(built.success());
        Running::start(&out, &[])
    };
    let mut symbolizer = Symbolizer::new(&helpers());
    let names = ["victims", "attacks"];
    let running = names.map(program);
    for (running, name) in running.iter().zip(names) {
        while !maps::read_in_test(running.pid())
            .is_ok_and(|maps| maps.areas.iter().any(|area| area.path.ends_with(name.as_bytes())))
        {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        symbolizer.add_process(running.pid());
    }
    let mut id = [0; 20];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = (at as u8 % 16) * 0x11;
    }
    for (running, name) in running.iter().zip(names) {
        let file = dir.path().join(name);
        let offset = offset_of(&file, name);
        let frames = symbolizer.build_id_frames(running.pid(), &id, offset, false);
        assert_eq!(frames[0].function.as_deref(), Some(name));
        assert!(symbolizer.holds_build_id(running.pid(), &id));
    }
    // Of a process that was never seen, the file is not known: the name is marked.
    let frames = symbolizer.build_id_frames(1, &id, offset_of(&dir.path().join(names[0]), names[0]), false);
    assert!(frames[0].function.as_deref().unwrap().ends_with(" [by build id]"), "{frames:?}");
    assert!(!symbolizer.holds_build_id(1, &id));
}

/// The file offset of a function, from `nm` and the first code segment.
fn offset_of(program: &Path, function: &str) -> u64 {
    let listed = Command::new("nm").arg(program).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let line = text.lines().find(|line| line.ends_with(&format!(" T {function}"))).unwrap();
    let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    podopsy_parse::elf::layout(&File::open(program).unwrap()).unwrap().offset_of(address).unwrap()
}

/// The program that the victims above run. As a test it does nothing.
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
fn a_deleted_executable_is_opened() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("napper");
    copy(Path::new("/bin/sleep"), &program);
    let napper = Running::start(&program, &["60"]);
    // Once the mapping is there, exec has happened.
    while !maps::read_in_test(napper.pid())
        .is_ok_and(|areas| areas.areas.iter().any(|area| area.path.ends_with(b"/napper")))
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::fs::remove_file(&program).unwrap();
    // Put a FIFO at the same path: opening it would hang.
    nix::unistd::mkfifo(&program, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(napper.pid());
    let area = code_of(napper.pid(), "napper (deleted)");
    let frames = symbolizer.user_frames(at(napper.pid(), area.start));
    assert!(frames[0].module.as_ref().unwrap().ends_with("/napper"), "{frames:?}");
    assert!(frames[0].build_id.is_some(), "{:?}", symbolizer.losses());
}

/// As in a container: in the test's own mount namespace, another file is at the path.
#[test]
fn the_executable_is_opened_in_the_mount_namespace_of_its_process() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hidden");
    std::fs::write(&program, "not the one that runs").unwrap();
    let script = "mount -t tmpfs none \"$0\" && cp /bin/sleep \"$0/hidden\" && exec \"$0/hidden\" 60";
    let place = dir.path().to_str().unwrap();
    let hidden = Running::start(Path::new("/usr/bin/unshare"), &["-m", "sh", "-c", script, place]);
    while !maps::read_in_test(hidden.pid())
        .is_ok_and(|areas| areas.areas.iter().any(|area| area.path.ends_with(b"/hidden")))
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(hidden.pid());
    let area = code_of(hidden.pid(), "/hidden");
    let frame = symbolizer.user_frames(at(hidden.pid(), area.start))[0].clone();
    let sleep = podopsy_parse::elf::layout(&File::open("/bin/sleep").unwrap()).unwrap();
    let build_id: String = sleep.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(frame.build_id.as_deref(), Some(build_id.as_str()), "{:?}", symbolizer.losses());
}

#[test]
fn an_address_without_a_file_is_shown_and_counted() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(pid);
    assert_eq!(symbolizer.user_frames(at(pid, 0x10))[0].module, None);
    let vdso = code_of(pid, "[vdso]");
    assert_eq!(symbolizer.user_frames(at(pid, vdso.start + 0x100))[0].module.as_deref(), Some("[vdso]"));
    assert_eq!(symbolizer.losses()["no_mapping"], 1);
    assert_eq!(symbolizer.user_frames(at(u32::MAX, 0x10)).len(), 1);
    symbolizer.add_process(u32::MAX);
    assert_eq!((symbolizer.losses()["process_unknown"], symbolizer.losses()["process_gone"]), (1, 1));
}

/// Starts Python and waits for a line from it.
fn run_python(arguments: &[&str]) -> Running {
    let mut python = Command::new("python3");
    let python = python.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut python = Running(python.expect("python3"));
    wait_for_line(&mut python.0);
    python
}

#[test]
fn a_frame_of_a_file_that_was_refused_has_the_files_name_and_the_reason() {
    let pid = std::process::id();
    let area = maps::read_in_test(pid).unwrap().find(own_address()).unwrap().clone();
    let filesystem = maps::FilesystemKind::Remote;
    let numbers = FileNumbers::default();
    let mut symbolizer = Symbolizer::new(&helpers()).with_numbers(numbers.clone());
    let mut frame_of = |inode, reason| {
        let area = maps::Area { inode, ..area.clone() };
        let number = numbers.number(&FileKey { inode, size: 1, device: 1, changed: 1 });
        let refused = NumberedFile { number, file: Err(reason), pid, tenant: 1, area, filesystem };
        numbers.add_opened(refused);
        // No process is known: the frame's number is all that there is.
        symbolizer.user_frames(at(u32::MAX, FrameWord::file(number, 0x1234)))[0].clone()
    };
    let frame = frame_of(1, StackLossReason::FileTooLarge);
    let path = std::str::from_utf8(area.file_path()).unwrap();
    assert_eq!((frame.module.as_deref(), frame.function, frame.offset), (Some(path), None, 0x1234));
    let frame = frame_of(2, StackLossReason::FileSystemNoAnswer);
    let function = frame.function.unwrap();
    assert!(function.starts_with("[symbols: gave up on podopsy_stacks"), "{function}");
    assert!(function.ends_with(": its file system does not answer]"), "{function}");
    let losses = symbolizer.losses();
    assert_eq!((losses["file_too_large"], losses["file_system_no_answer"]), (1, 1));
}

/// An executable mapping without a file, in a process that writes a perf map and then ends.
#[test]
fn code_made_at_run_time_has_its_name_from_the_perf_map() {
    let script = "import mmap, os, sys\n\
        code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC)\n\
        print('sleeping', flush=True)\nsys.stdin.read()";
    let python = run_python(&["-c", script]);
    let pid = python.pid();
    let areas = maps::read_in_test(pid).unwrap();
    let area = areas.areas.iter().find(|area| area.path.is_empty()).expect("no anonymous code");
    let map = tempfile::Builder::new()
        .prefix(&format!("perf-{pid}"))
        .suffix(".map")
        .rand_bytes(0)
        .tempfile_in("/tmp")
        .unwrap();
    writeln!(map.as_file(), "{:x} 100 jitted(handler)", area.start).unwrap();
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(pid);
    drop((python, map));
    let frame = symbolizer.user_frames(at(pid, area.start + 0x10))[0].clone();
    assert_eq!(
        (frame.function.as_deref(), frame.module.as_deref()),
        (Some("jitted(handler)"), Some("[anonymous]"))
    );
    assert_eq!(symbolizer.user_frames(at(pid, area.start + 0x200))[0].function, None);
    assert_eq!(symbolizer.losses()["anonymous_code"], 1);
}

#[test]
fn a_kernel_address_has_its_name_from_kallsyms() {
    let table = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let line = table.lines().find(|line| line.ends_with(" T schedule")).expect("kallsyms has no schedule");
    let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    let mut symbolizer = Symbolizer::new(&helpers());
    let frame = symbolizer.kernel_frames(address + 1, true)[0].clone();
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
fn the_number_of_open_files_is_bounded_and_evictions_are_counted() {
    let limits = files::FileLimits { open: 1, ..files::FileLimits::default() };
    let mut symbolizer = Symbolizer { files: FileTable::from_limits(limits), ..Symbolizer::new(&helpers()) };
    symbolizer.add_process(std::process::id());
    assert!(symbolizer.losses()["files_evicted"] >= 1);
    // The file's name and build id stay known. Only names of functions are missing, which is counted.
    let libc = code_of(std::process::id(), "libc.so.6");
    let first = symbolizer.mappings().remove(0);
    // A mapping begins at a page boundary, but its segment may begin later.
    let frame = symbolizer.user_frames(at(std::process::id(), first.start + 4096))[0].clone();
    assert_eq!(frame.module, Some(first.name));
    assert!(symbolizer.losses().contains_key("file_evicted"), "{:?} {libc:?}", symbolizer.losses());
}

/// As in containers of one image: overlays of one lower layer, and one container has written to its file since.
#[test]
fn a_lower_file_of_many_overlays_is_open_once_unless_it_was_written_to() {
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
            let areas = maps::read_in_test(pid).ok()?.areas;
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
    // The inode number, the size and the modification time are the same as before the write.
    let facts = |(pid, area): &(u32, maps::Area)| {
        let kind = maps::FilesystemKind::Other;
        let stat = open::mapped_file(&helpers().openers, (*pid, 1), area, kind).unwrap().stat;
        (stat.inode, stat.size, stat.modified.1)
    };
    assert_eq!(facts(&a), facts(&c));

    let helpers = helpers();
    let (mut files, mut parser, mut losses) =
        (FileTable::default(), helpers.parsers.parser(), StackLosses::default());
    let mut add = |files: &mut FileTable, (pid, area): &(u32, maps::Area)| {
        let filesystem = maps::Mounts::read(*pid).filesystem(area.device);
        files.add_mapped(
            &files::MappedFile { pid: *pid, tenant: 1, area, filesystem },
            &mut FileHelpers { openers: &helpers.openers, parser: &mut parser },
            &mut losses,
        )
    };
    let ids = [&a, &b, &b, &a].map(|one| add(&mut files, one));
    assert_eq!(files.open(), 1);
    assert!(ids[0] != ids[1] && ids[1] == ids[2] && ids[0] == ids[3], "each has its own name: {ids:?}");
    add(&mut files, &c);
    assert_eq!(files.open(), 2, "the file that was written to is another file");
    // Only the second is still used, which shares the descriptor of the first.
    let since = std::time::Instant::now();
    assert!(files.touch(&b.1));
    files.close_unused_since(since);
    assert_eq!((files.open(), files.is_held(ids[0]), files.touch(&c.1)), (1, true, false));
    files.close_unused_since(std::time::Instant::now());
    assert_eq!((files.open(), files.touch(&b.1)), (0, false));
    assert_eq!(add(&mut files, &b), ids[1], "it is opened again under the same id");
    assert_eq!(files.open(), 1);
}

#[test]
fn a_file_that_was_closed_is_opened_again_while_its_process_runs() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.refresh_files(pid);
    let held = symbolizer.files.open();
    let since = std::time::Instant::now();
    symbolizer.refresh_files(pid);
    symbolizer.close_unused_since(since);
    assert_eq!(symbolizer.files.open(), held, "the files are still used");
    symbolizer.close_unused_since(std::time::Instant::now());
    assert_eq!(symbolizer.files.open(), 0);
    symbolizer.refresh_files(pid);
    assert_eq!(symbolizer.files.open(), held);
    assert!(!symbolizer.losses().contains_key("files_evicted"));
}

#[test]
fn addresses_that_were_looked_up_together_are_named_from_the_cache() {
    needs_root();
    let pid = std::process::id();
    let libc = code_of(pid, "libc.so.6");
    let places = [at(pid, own_address()), at(pid, libc.start + 0x1000)];
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(pid);
    symbolizer.look_up_all([(0xffff_ffff_8100_0000, false)], places);
    assert_eq!(symbolizer.cache.len(), 2);
    // Without its worker, names can come from the cache alone.
    symbolizer.close_unused_since(std::time::Instant::now());
    let named = symbolizer.user_frames(places[0]).last().unwrap().clone();
    assert!(named.function.unwrap().contains("a_function_with_a_name"));
    assert_eq!(symbolizer.user_frames(places[1])[0].module.as_deref(), Some(&*escape(&libc)));
}

#[test]
fn an_address_has_the_same_frames_after_a_trim() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(pid);
    let before = symbolizer.user_frames(at(pid, own_address()));
    symbolizer.trim();
    assert_eq!(symbolizer.user_frames(at(pid, own_address())), before);
}

#[test]
fn a_file_that_was_overwritten_after_first_sight_is_not_symbolized() {
    let mut files = FileTable::default();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&std::fs::read("/bin/sleep").unwrap(), 0).unwrap();
    let helpers = helpers();
    let (mut parser, mut losses) = (helpers.parsers.parser(), StackLosses::default());
    let handle = FileHandle::from_file(file.try_clone().unwrap()).unwrap();
    let id = files.add_image("swapped", handle, (0, 0, 0), &mut parser);
    file.set_len(0).unwrap();
    // Offset 0 lies in a segment. The content is gone, but reading it must not cause SIGBUS.
    let found = files.symbols(
        id,
        &[0],
        &mut FileHelpers { openers: &helpers.openers, parser: &mut parser },
        &mut losses,
    );
    assert_eq!(found, [Err(Unnamed::Lost(StackLossReason::FileChanged))]);
}

#[test]
fn the_symbolizer_can_be_sent_to_a_blocking_thread() {
    fn is_send<T: Send>() {}
    is_send::<Symbolizer>();
}

#[test]
fn a_frame_has_the_name_of_its_file_also_when_its_process_was_never_looked_at() {
    needs_root();
    let pid = std::process::id();
    let area = maps::read_in_test(pid).unwrap().find(own_address()).unwrap().clone();
    let offset = own_address() - area.start + area.offset;
    let file = Arc::new(
        open::mapped_file(&helpers().openers, (pid, 1), &area, maps::FilesystemKind::Other).unwrap(),
    );
    let numbers = FileNumbers::default();
    let key = crate::unwind::file_key(&file, &area);
    let number = numbers.number(&key);
    let frame = |number| at(u32::MAX, FrameWord::file(number, offset));
    let mut symbolizer = Symbolizer::new(&helpers()).with_numbers(numbers.clone());

    let unopened = &symbolizer.user_frames(frame(number))[0];
    assert_eq!(unopened.function.as_deref(), Some("[unknown: the file could not be opened]"));
    let filesystem = maps::FilesystemKind::Other;
    numbers.add_opened(NumberedFile { number, file: Ok(file), pid, tenant: 1, area, filesystem });
    let named = symbolizer.user_frames(frame(number));
    assert!(named.last().unwrap().function.as_ref().unwrap().contains("a_function_with_a_name"), "{named:?}");
    assert_eq!(named.last().unwrap().offset, offset);
    // A file that was opened for its process is found by its key.
    let mut other = Symbolizer::new(&helpers()).with_numbers(numbers);
    other.add_process(pid);
    assert_eq!(other.user_frames(frame(number)), named);
}

#[test]
fn an_address_of_a_program_that_the_process_has_replaced_has_no_name() {
    let pid = std::process::id();
    let mut symbolizer = Symbolizer::new(&helpers());
    symbolizer.add_process(pid);
    let own = ProgramImage(maps::stat(pid).unwrap().start_stack);
    assert_ne!(own, ProgramImage::UNKNOWN);
    let name = |symbolizer: &mut Symbolizer, image| {
        let frames = symbolizer.user_frames(UserAddress { image, ..at(pid, own_address()) });
        frames.last().unwrap().function.as_deref().unwrap_or_default().to_owned()
    };
    assert!(name(&mut symbolizer, own).contains("a_function_with_a_name"));
    let replaced = name(&mut symbolizer, ProgramImage(own.0 ^ 0x1000));
    assert_eq!(replaced, "[unknown: the process has started another program since]");
    assert_eq!(symbolizer.losses()["program_replaced"], 1);
    let nowhere = at(pid, 0x10);
    assert!(symbolizer.locate(nowhere).ends_stack());
}
