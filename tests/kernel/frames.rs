//! Frames belong to the file that was mapped when the sample was taken: after exec, after a library was replaced at its
//! address, and where a stack leads to another one.

use std::time::Duration;

use crate::support;
use podopsy_model::profile::{Profile, Sample, Sampling};
use podopsy_recorder::cpu::Scope;
use support::program::{Running, compile, has, take_profile};

const CPU: Sampling = Sampling::Cpu { frequency_hz: 499 };

impl Running {
    fn profile_for(&mut self, seconds: u64, sampling: Sampling, unwind: bool) -> Profile {
        let scope = Scope::Cgroups(vec![self.cgroup.id()]);
        let taken = take_profile(scope, Duration::from_secs(seconds), sampling, unwind, u64::MAX);
        let ended = self.child.try_wait().expect("the program's state");
        assert!(ended.is_none(), "the program ended: {ended:?}");
        taken
    }
}

/// Compiles by a compiler and its options in one text.
fn compile_words(how: &str, source: &str, output: &str) -> String {
    compile(&how.split(' ').collect::<Vec<_>>(), source, output)
}

/// How many samples fulfil a condition.
fn count(profile: &Profile, is: impl Fn(&Sample) -> bool) -> u64 {
    profile.samples.iter().filter(|sample| is(sample)).map(|sample| sample.count).sum()
}

/// Fails if a sample of a thread with one name has a function of the other, or lacks its own.
fn are_not_mixed(profile: &Profile, threads: [(&str, &str); 2]) {
    for ((thread, own), (_, other)) in [(threads[0], threads[1]), (threads[1], threads[0])] {
        let of = |sample: &Sample| &*sample.thread == thread;
        let (all, mixed) = (count(profile, of), count(profile, |sample| of(sample) && has(sample, other)));
        let named = count(profile, |sample| of(sample) && has(sample, own));
        eprintln!("{thread}: {named} of {all} samples in {own}, {mixed} in {other}; {:?}", profile.losses);
        let wrong = profile.samples.iter().filter(|sample| of(sample) && !has(sample, own));
        assert!(all >= 100 && mixed == 0, "{thread}: {mixed} of {all} samples in {other}");
        assert!(named * 100 >= all * 97, "{thread}: {named} of {all} in {own}\n{}", support::stacks(wrong));
    }
    let bare = count(profile, |sample| {
        sample.stack.iter().any(|frame| frame.module.is_none() && frame.function.is_none())
    });
    assert_eq!(bare, 0, "an address in no mapping is shown as a frame");
}

/// Two static programs at the same addresses: the first becomes the second in the middle of the profile.
fn becomes(name: &str, more: &str) -> Running {
    let how = format!("gcc -O2 -fomit-frame-pointer -static -no-pie{more}");
    let second = compile_words(&format!("{how} -DSECOND"), "becomes.c", &format!("{name}-2"));
    let first = compile_words(&how, "becomes.c", &format!("{name}-1"));
    Running::start(name, &format!("{first} 4 {second}"))
}

#[test]
fn after_an_exec_no_sample_has_functions_of_the_other_program() {
    let profile = becomes("becomes", "").profile_for(8, CPU, true);
    are_not_mixed(&profile, [("becomes-1", "first_work"), ("becomes-2", "second_work")]);
    let (user, complete) = profile.complete();
    assert!(complete * 1000 >= user * 995, "{complete} of {user}: {:?}", profile.quality);
}

#[test]
fn page_faults_have_the_program_that_caused_them() {
    let profile = becomes("faults", " -DFAULTS").profile_for(8, Sampling::Growth { every: 64 }, true);
    are_not_mixed(&profile, [("faults-1", "first_work"), ("faults-2", "second_work")]);
}

#[test]
fn frame_pointers_lead_to_no_function_of_the_program_after_an_exec() {
    let profile = becomes("pointers", "").profile_for(8, CPU, false);
    are_not_mixed(&profile, [("pointers-1", "first_work"), ("pointers-2", "second_work")]);
}

#[test]
fn a_library_that_came_to_the_address_of_another_has_only_its_own_samples() {
    let how = "gcc -O2 -fomit-frame-pointer -shared -fPIC";
    let one = compile_words(&format!("{how} -DWORK=one_work"), "plugin.c", "one.so");
    let two = compile_words(&format!("{how} -DWORK=two_work"), "plugin.c", "two.so");
    let program = compile_words("gcc -O2 -fomit-frame-pointer", "reload.c", "reload");
    let profile = Running::start("reload", &format!("{program} {one} {two}")).profile_for(6, CPU, true);
    are_not_mixed(&profile, [("plugin-0", "one_work"), ("plugin-1", "two_work")]);
}

#[test]
fn code_that_a_program_copied_to_anonymous_memory_keeps_its_names_and_its_callers() {
    for (name, flag) in [("pointers", "-fno-omit-frame-pointer"), ("moved", "-fomit-frame-pointer")] {
        let program = compile_words(&format!("gcc -O2 {flag}"), "moved_text.c", name);
        let profile = Running::start(name, &program).profile_for(4, CPU, true);
        let all = count(&profile, |sample| &*sample.thread == name);
        let callers = ["moved_work", "calls_moved_work", "main", "_start"];
        let named = count(&profile, |sample| callers.iter().all(|function| has(sample, function)));
        let (user, complete) = profile.complete();
        eprintln!(
            "{name}: {named} of {all}, {complete} complete: {:?} {}",
            profile.losses,
            support::stacks(profile.samples.iter().take(2))
        );
        assert!(all >= 100 && named * 100 >= all * 97, "{name}: {named} of {all} samples have their names");
        assert!(complete * 100 >= user * 97, "{name}: {complete} of {user}: {:?}", profile.quality);
    }
}

#[test]
fn stacks_of_go_are_followed_across_its_switches() {
    for (name, how) in [("go", "go build"), ("go-stripped", "go build -ldflags=-s")] {
        let program = compile_words(how, "switches.go", name);
        let profile = Running::start(name, &program).profile_for(8, CPU, true);
        let (user, complete) = profile.complete();
        eprintln!("{name}: {complete} of {user} complete; {:?}", profile.quality[0].incomplete);
        let below = |sample: &Sample, function: &str| has(sample, function);
        for (switch, caller) in [("runtime.systemstack", "main.record"), ("time.now", "main.readClock")] {
            let through = count(&profile, |sample| below(sample, switch) && below(sample, caller));
            assert!(through >= 100, "{name}: {through} samples lead through {switch} to {caller}");
        }
        let cut = |sample: &&Sample| {
            let last = sample.stack.last().and_then(|frame| frame.function.as_deref());
            last.is_some_and(|name| name.starts_with('['))
        };
        let cut: Vec<&Sample> = profile.samples.iter().filter(cut).collect();
        assert!(
            complete * 1000 >= user * 950,
            "{name}: {complete} of {user}\n{}",
            support::stacks(cut.into_iter())
        );
        let bare = count(&profile, |sample| {
            sample.stack.iter().any(|frame| frame.module.is_none() && frame.function.is_none())
        });
        assert_eq!(bare, 0, "{name}: an address in no mapping is shown as a frame");
    }
}

#[test]
fn a_stack_of_a_coroutine_or_a_signal_handler_is_complete_only_with_the_threads_outermost_function() {
    let program = compile_words("gcc -O2 -fomit-frame-pointer", "other_stacks.c", "other-stacks");
    // The caller of a handler is on the stack. That of a coroutine is not.
    for (kind, is_crossed) in [("context", false), ("fiber", false), ("overwritten", false), ("signal", true)]
    {
        let profile = Running::start(kind, &format!("{program} {kind}")).profile_for(4, CPU, true);
        let outermost = |sample: &Sample| sample.stack.last().and_then(|frame| frame.function.clone());
        let is_whole = |sample: &Sample| outermost(sample).as_deref() == Some("_start");
        let has_reason = |sample: &Sample| outermost(sample).is_some_and(|name| name.starts_with("[unwind"));
        let (own, other) =
            (|sample: &Sample| has(sample, "on_own_stack"), |sample: &Sample| has(sample, "on_other_stack"));
        let all = [count(&profile, own), count(&profile, other)];
        let whole = count(&profile, |sample| own(sample) && is_whole(sample));
        let right = count(&profile, |sample| {
            other(sample) && if is_crossed { is_whole(sample) } else { has_reason(sample) }
        });
        eprintln!(
            "{kind}: {whole} and {right} of {all:?}; {}",
            support::stacks(profile.samples.iter().take(2))
        );
        assert!(all.iter().all(|samples| *samples >= 100), "{kind}: {all:?}");
        assert!(whole * 1000 >= all[0] * 995, "{kind}: {whole} of {} lead to _start", all[0]);
        assert!(right * 1000 >= all[1] * 995, "{kind}: {right} of {} end as they should", all[1]);
        let ends = count(&profile, |sample| !is_whole(sample) && !has_reason(sample));
        assert_eq!(ends, 0, "{kind}: stacks end without the outermost function, and without a reason");
        let data = count(&profile, |sample| {
            sample.stack.iter().any(|frame| frame.module.as_deref() == Some("[anonymous]"))
        });
        assert_eq!(data, 0, "{kind}: data is shown as a frame");
    }
}

#[test]
fn of_a_32_bit_program_the_innermost_frame_is_known() {
    let program =
        compile_words("gcc -m32 -O2 -fno-pie -no-pie -nostdlib -static", "thirty_two.c", "thirty-two");
    let profile = Running::start("compat", &program).profile_for(3, CPU, true);
    let own = count(&profile, |sample| {
        sample
            .stack
            .iter()
            .any(|frame| frame.module.as_deref().is_some_and(|file| file.ends_with("thirty-two")))
    });
    let all = count(&profile, |sample| &*sample.thread == "thirty-two");
    eprintln!("{own} of {all}: {}", support::stacks(profile.samples.iter().take(2)));
    assert!(all >= 100 && own * 100 >= all * 97, "{own} of {all} samples have a frame in the program");
}
