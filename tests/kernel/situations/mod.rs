//! Every command in every situation: the right answer or one clear line, and the exit code that docs/cli.md documents.
//!
//! | module | has |
//! |---|---|
//! | [`table`] | what is expected: a row for each command, a cell for each situation |
//! | [`stage`] | the node, the agent and the pods that all cells share |
//! | [`run`] | one command: its pipes, its terminal, its signals |

mod run;
mod stage;
mod table;

use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use run::Seen;
use stage::Stage;
use table::{Call, Cell, ROWS, Situation};

/// Commands that run at a time: most of them wait.
const WORKERS: usize = 4;

/// What became of a cell.
struct Verdict {
    row: usize,
    situation: Situation,
    code: Option<i32>,
    elapsed: Duration,
    wrong: Vec<String>,
}

#[test]
fn every_command_has_an_answer_or_one_clear_line_in_every_situation() {
    let began = Instant::now();
    let stage = Stage::set();
    let ready = began.elapsed();
    let verdicts = run_all(&stage);
    println!("{}", shown(&verdicts));
    let left = stage.unfinished_files();
    assert!(left.is_empty(), "left behind: {left:?}");
    println!("{ready:.1?} until all was ready, {:.1?} for all cells", began.elapsed() - ready);
    let wrong: Vec<&str> = verdicts.iter().flat_map(|verdict| &verdict.wrong).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{} wrong cells:\n{}", wrong.len(), wrong.join("\n"));
}

/// Runs all cells, some at a time; returns them in the order of the table.
fn run_all(stage: &Stage) -> Vec<Verdict> {
    let calls = ROWS.iter().enumerate().flat_map(|(row, of)| {
        let calls = of.cells().into_iter().filter_map(|(situation, cell)| match cell {
            Cell::Run(call) => Some((situation, call)),
            Cell::None(_) => None,
        });
        calls.map(move |(situation, call)| (row, situation, call))
    });
    let calls = Mutex::new(calls.collect::<Vec<_>>().into_iter());
    let verdicts = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some((row, situation, call)) = calls.lock().expect("the calls").next() else {
                        return;
                    };
                    let verdict = judge(stage, row, situation, &call);
                    verdicts.lock().expect("the verdicts").push(verdict);
                }
            });
        }
    });
    let mut verdicts = verdicts.into_inner().expect("the verdicts");
    verdicts.sort_by_key(|verdict| (verdict.row, verdict.situation));
    verdicts
}

fn judge(stage: &Stage, row: usize, situation: Situation, call: &Call) -> Verdict {
    let (args, file) = stage.arguments(&ROWS[row], situation, call);
    let began = Instant::now();
    let seen = run::run(stage, situation, &args, call.until_interrupted);
    let elapsed = began.elapsed();
    let mut wrong = check(&seen, situation, call);
    wrong.extend(stage.check_file(&file, situation, seen.code));
    let name =
        format!("{} × {}: podopsy {}", ROWS[row].command, situation.name(), args.join(" ").escape_debug());
    let wrong = wrong.iter().map(|why| format!("{name}: {why}\n{}", indented(&seen)));
    Verdict { row, situation, code: seen.code, elapsed, wrong: wrong.collect() }
}

/// What is wrong with an answer.
fn check(seen: &Seen, situation: Situation, call: &Call) -> Vec<String> {
    let mut wrong = Vec::new();
    if seen.code != Some(call.code) {
        wrong.push(format!("exit code {:?} instead of {}", seen.code, call.code));
    }
    let all = format!("{}{}", seen.stdout, seen.stderr);
    if !all.contains(call.text) {
        wrong.push(format!("no {:?}", call.text));
    }
    if all.contains("bug in podopsy") || all.contains("panicked") {
        wrong.push("a panic".to_owned());
    }
    // Above 4 it is the code of the program that was entered, and an empty list has 1 without an error.
    let errors = seen.stderr.lines().filter(|line| line.starts_with("podopsy: ")).count();
    if errors > 1 || (errors == 0 && (2..=4).contains(&call.code)) {
        wrong.push(format!("{errors} lines of an error"));
    }
    let is_redrawn = situation == Situation::Narrow;
    let stderr = if is_redrawn { seen.stderr.replace('\r', "\n") } else { seen.stderr.clone() };
    for (name, text) in [("stdout", &seen.stdout), ("stderr", &stderr)] {
        wrong.extend(foreign(text).map(|found| format!("{found:?} on {name}")));
        if text.lines().any(|line| line.trim_start().starts_with(stage::INJECTED)) {
            wrong.push(format!("a name begins a line on {name}"));
        }
    }
    if situation == Situation::Narrow {
        // What comes after the last return stays.
        let drawn_again = seen.stderr.lines().filter_map(|line| line.rsplit_once('\r'));
        let drawn_again = drawn_again.flat_map(|(drawn, _)| drawn.split('\r'));
        let lines = seen.stdout.lines().chain(drawn_again.map(str::trim_end));
        let too_long = lines.filter(|line| line.chars().count() > run::COLUMNS.into());
        wrong.extend(too_long.map(|line| format!("more than {} columns: {line:?}", run::COLUMNS)));
    }
    wrong
}

/// A character that a terminal would act on. What podopsy itself sends to one has been taken out.
fn foreign(text: &str) -> Option<char> {
    let is_foreign = |character: char| match character {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => true,
        character => character.is_control(),
    };
    text.chars().find(|&character| is_foreign(character))
}

fn indented(seen: &Seen) -> String {
    let lines = seen.stdout.lines().map(|line| format!("    {}\n", line.escape_debug()));
    let errors = seen.stderr.lines().map(|line| format!("  ! {}\n", line.escape_debug()));
    lines.chain(errors).collect()
}

/// The table with the exit codes that were seen; `!` marks a cell that is wrong. Below it, why cells are left out.
fn shown(verdicts: &[Verdict]) -> String {
    let mut out = String::from("exit codes (! wrong, - does not apply)\n            ");
    for situation in Situation::ALL {
        let _ = write!(out, " {:>11}", situation.name());
    }
    let mut reasons = String::new();
    for (row, of) in ROWS.iter().enumerate() {
        let _ = write!(out, "\n{:12}", of.command);
        for (situation, cell) in of.cells() {
            let verdict = verdicts.iter().find(|one| (one.row, one.situation) == (row, situation));
            let shown = match (&cell, verdict) {
                (_, Some(one)) => {
                    let code = one.code.map_or_else(|| "?".to_owned(), |code| code.to_string());
                    let mark = if one.wrong.is_empty() { "" } else { "!" };
                    format!("{mark}{code} {:.1}s", one.elapsed.as_secs_f64())
                }
                (Cell::None(why), None) => {
                    let _ = writeln!(reasons, "- {} × {}: {why}", of.command, situation.name());
                    "-".to_owned()
                }
                (Cell::Run(_), None) => "?".to_owned(),
            };
            let _ = write!(out, " {shown:>11}");
        }
    }
    format!("{out}\n{reasons}")
}
