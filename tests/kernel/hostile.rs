//! Files and processes that a hostile container's owner chose, against an agent with the memory limit of the manifest. The
//! agent must live, give up its rights in time, and report a neighbour's kills in time and in full.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use support::agent::until;
use support::attacked::{ATTACK_LIMIT, Attacked, attack, native};
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
