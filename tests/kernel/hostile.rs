//! Files and processes that a hostile container's owner chose, against an agent with the memory limit of the manifest. The
//! agent must live, give up its rights in time, and report a neighbour's kills in time and in full.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support;
use support::agent::until;
use support::attacked::{ATTACK_LIMIT, Attacked, attack, native, native_as};
use support::{MemoryCgroup, Running, hostile_elf, is_emulated, require_root};

#[test]
fn hostile_files_cost_the_attacker_its_own_names_and_no_neighbour_a_kill() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    hostile_elf::names(&path("names"), 600);
    hostile_elf::python_bomb(&path("python_bomb"), 64);
    hostile_elf::frame_bomb(&path("frame_bomb"), 8, 3000);
    hostile_elf::mangled(&path("mangled"), 26);
    hostile_elf::unit_bomb(&path("unit_bomb"), 4000, 20_000);
    hostile_elf::sparse(&path("sparse"));
    let attacker = MemoryCgroup::new("attacker-files", ATTACK_LIMIT);
    let all = ["names", "python_bomb", "frame_bomb", "mangled", "unit_bomb", "sparse"];
    // They run when the agent starts.
    let attacks = all.map(|name| attack(&attacker, &path(name).display().to_string()));
    let mut attacked = Attacked::start("files");
    attacked.is_restrained_in_time();
    attacked.reports_a_neighbours_kills("files");
    attacked.is_alive();
    drop(attacks);
    let profile = until("profile of the attacks", || {
        let profile = attacked.profile()?;
        // The function of `mangled` stands without its file.
        let mut others = all.iter().filter(|name| **name != "mangled");
        others.all(|name| profile.contains(name)).then_some(profile)
    });
    // The name that stands for terabytes is shown as far as it goes.
    assert!(profile.contains("f(A<int, int>, A<A<int, int>"), "{profile}");
    assert!(profile.lines().all(|line| line.len() < 64 << 10));
}

#[test]
fn growing_perf_maps_and_thousands_of_mappings_stay_within_the_agents_memory() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let (perf_map, long_maps) = (native(folder.path(), "perf_map"), native(folder.path(), "long_maps"));
    let attacker = MemoryCgroup::new("attacker-maps", ATTACK_LIMIT);
    let mut attacks: Vec<Running> =
        (0..3).map(|_| attack(&attacker, &format!("{} 64", perf_map.display()))).collect();
    let maps: Vec<u32> = attacks.iter().map(|attack| attack.0.id()).collect();
    let mut attacked = Attacked::start("maps");
    attacked.is_restrained_in_time();
    // The newest entry, behind 64 MiB of others.
    let is_named = || attacked.profile()?.contains("made_at_run_time").then_some(());
    until("name of code made at run time", is_named);
    // The memory budget may shed profiles from here on, but not kills.
    attacks.push(attack(&attacker, &format!("{} {} 40 4000", long_maps.display(), folder.path().display())));
    attacked.reports_a_neighbours_kills("maps");
    attacked.is_alive();
    drop(attacks);
    maps.iter().for_each(|pid| drop(fs::remove_file(format!("/tmp/perf-{pid}.map"))));
}

/// Starts programs that no worker has read yet, one after the other, each a small file of its own.
fn start_small_programs(folder: &Path, attacker: &MemoryCgroup, goes_on: &AtomicBool) -> u32 {
    let mut number = 0;
    while goes_on.load(Relaxed) {
        number += 1;
        let program = folder.join(format!("small-{number}"));
        fs::copy("/bin/true", &program).expect("copy a program");
        let _ = attacker.command(&program.display().to_string()).status();
        let _ = fs::remove_file(&program);
    }
    number
}

#[test]
fn thousands_of_small_programs_and_files_that_change_cost_no_neighbour_a_kill() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let changing = native(folder.path(), "changing");
    let attacker = MemoryCgroup::new("attacker-many", ATTACK_LIMIT);
    let attacks = [1, 2].map(|number| {
        attack(&attacker, &format!("{} {}/copy-{number}", changing.display(), folder.path().display()))
    });
    let mut attacked = Attacked::start("many");
    attacked.is_restrained_in_time();
    let goes_on = AtomicBool::new(true);
    let began = Instant::now();
    let started = std::thread::scope(|threads| {
        let small: Vec<_> = (0..2)
            .map(|number| {
                let own = folder.path().join(number.to_string());
                fs::create_dir(&own).expect("a folder");
                let (attacker, goes_on) = (&attacker, &goes_on);
                threads.spawn(move || start_small_programs(&own, attacker, goes_on))
            })
            .collect();
        attacked.reports_a_neighbours_kills("many");
        goes_on.store(false, Relaxed);
        small.into_iter().map(|thread| thread.join().expect("the programs")).sum::<u32>()
    });
    eprintln!("{started} small programs in {:?}", began.elapsed());
    assert!(is_emulated() || started > 600, "too few: {started}");
    attacked.is_alive();
    drop(attacks);
    let profile = until("profile of the attack", || {
        attacked.profile().filter(|profile| profile.contains("copy-") || profile.contains("changing"))
    });
    assert!(profile.lines().all(|line| line.len() < 64 << 10));
}

#[test]
fn false_interpreters_leave_a_neighbour_its_python_functions() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let pythons = folder.path().join("pythons");
    fs::create_dir(&pythons).expect("a folder");
    // More than the kernel side has numbers for.
    (0..70).for_each(|number| hostile_elf::python(&pythons.join(number.to_string()), number));
    let map_all = native(folder.path(), "map_all");
    let attacker = MemoryCgroup::new("attacker-pythons", ATTACK_LIMIT);
    let attacks = attack(&attacker, &format!("{} {}", map_all.display(), pythons.display()));
    let mut attacked = Attacked::start("pythons");
    attacked.is_restrained_in_time();
    until("sample of the attack", || {
        attacked.profile().filter(|profile| profile.contains("work_beside_false_pythons"))
    });

    let neighbour = MemoryCgroup::new("neighbour-of-pythons", 256 << 20);
    let script = folder.path().join("cart.py");
    fs::write(&script, "def price_of_cart():\n    while True: pass\nprice_of_cart()\n").expect("a script");
    let python = attack(&neighbour, &format!("/usr/bin/python3 {}", script.display()));
    until("Python function of the neighbour", || {
        attacked.profile().filter(|profile| profile.contains("price_of_cart"))
    });
    attacked.reports_a_neighbours_kills("pythons");
    attacked.is_alive();
    drop((attacks, python));
}

/// Compiles `twin.c` with a name for its function, and always with the same build id.
fn twin(folder: &Path, function: &str) -> PathBuf {
    let name = format!("-DNAME={function}");
    native_as(&folder.join(function), "twin", &[&name, "-Wl,--build-id=0x1234567812345678"])
}

#[test]
fn a_twin_with_the_same_build_id_gives_its_neighbour_no_name() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let (false_twin, honest) = (twin(folder.path(), "false_name"), twin(folder.path(), "real_name"));
    let attacker = MemoryCgroup::new("attacker-twin", ATTACK_LIMIT);
    let attack_of_twin = attack(&attacker, &false_twin.display().to_string());
    let mut attacked = Attacked::start("twin");
    attacked.is_restrained_in_time();
    let samples = |name: &str| {
        let profile = attacked.profile().unwrap_or_default();
        let lines = profile.lines().filter(|line| line.contains(&format!(";{name}")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    until("name of the attacker's function", || (samples("false_name") > 0).then_some(()));
    // Its file is known, and it has ended, when the neighbour starts.
    drop(attack_of_twin);
    let before = until("end of the attacker's samples", || {
        let count = samples("false_name");
        std::thread::sleep(Duration::from_secs(6));
        (samples("false_name") == count).then_some(count)
    });
    let neighbour = MemoryCgroup::new("neighbour-of-twin", 64 << 20);
    let running = attack(&neighbour, &honest.display().to_string());
    until("name of the neighbour's function", || (samples("real_name") > 100).then_some(()));
    assert_eq!(samples("false_name"), before);
    attacked.reports_a_neighbours_kills("twin");
    attacked.is_alive();
    drop(running);
}
