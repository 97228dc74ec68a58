//! Damaged copies of valid inputs. Random bytes hardly ever get past a magic number; a copy with a few wrong bytes does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::Bounds;

/// No input gets longer.
const MAX_LEN: usize = 8 << 10;
/// Numbers at which arithmetic or a bound may go wrong.
const NUMBERS: [u64; 14] = [
    0,
    1,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Makes a damaged copy of one of several inputs.
#[derive(Debug)]
pub struct Mutator {
    random: Rng,
}

impl Mutator {
    pub fn new(seed: u64) -> Mutator {
        Mutator { random: Rng::with_seed(seed) }
    }

    /// A copy of one of `inputs` with up to eight changes.
    pub fn next(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.pick(inputs);
        for _ in 0..self.random.usize(1..=8) {
            self.change(&mut bytes, inputs);
            bytes.truncate(MAX_LEN);
        }
        bytes
    }

    fn pick(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        self.random.choice(inputs).cloned().unwrap_or_default()
    }

    fn change(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        if bytes.is_empty() {
            bytes.push(self.random.u8(..));
        }
        let at = self.random.usize(..bytes.len());
        let end = self.random.usize(at..bytes.len().min(at + 64)) + 1;
        match self.random.u8(..10) {
            0 => bytes[at] ^= 1 << self.random.u8(..8),
            1 => bytes[at] = self.random.u8(..),
            2 | 3 => self.put_number(bytes, at),
            4 => {
                let step = self.random.u8(1..=8);
                bytes[at] = if self.random.bool() {
                    bytes[at].wrapping_add(step)
                } else {
                    bytes[at].wrapping_sub(step)
                };
            }
            5 => drop(bytes.drain(at..end)),
            6 => {
                let part = bytes[at..end].to_vec();
                let times = self.random.usize(1..=8);
                bytes.splice(at..at, part.repeat(times));
            }
            7 => {
                let other = self.pick(inputs);
                let from = self.random.usize(..=other.len());
                let to = self.random.usize(from..=other.len().min(from + 256));
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            8 => {
                let other = self.random.usize(..bytes.len());
                bytes.swap(at, other);
            }
            _ => bytes.truncate(at),
        }
    }

    /// Writes a number of one, two, four or eight bytes, in either order; or its digits.
    fn put_number(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let number = self.random.choice(NUMBERS).unwrap_or_default();
        if self.random.u8(..8) == 0 {
            bytes.splice(at..at, number.to_string().bytes());
            return;
        }
        let width = 1 << self.random.u8(..4);
        let mut little = number.to_le_bytes()[..width].to_vec();
        if self.random.bool() {
            little.reverse();
        }
        for (byte, new) in bytes[at..].iter_mut().zip(little) {
            *byte = new;
        }
    }
}

/// What [`mutants`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub valid: usize,
    pub runs: u64,
}

/// Runs a target with damaged copies of the files in `corpus`, for some time. Panics at the first finding, and writes its
/// input into the folder `crashes` beside the corpus, from where the next run replays it.
pub fn mutants(corpus: &Path, target: fn(&[u8]), bounds: Bounds, time: Duration) -> Report {
    let inputs = read_folder(corpus);
    let seed = std::env::var("PODOPSY_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut mutator = Mutator::new(seed);
    let (start, mut runs) = (Instant::now(), 0);
    while start.elapsed() < time {
        let input = mutator.next(&inputs);
        if catch_unwind(AssertUnwindSafe(|| bounds.run(target, &input))).is_err() {
            let kept = keep(corpus, &input);
            panic!(
                "a finding after {runs} runs with PODOPSY_FUZZ_SEED={seed}; its input is {}",
                kept.display()
            );
        }
        runs += 1;
    }
    Report { valid: inputs.len(), runs }
}

/// The content of the files in a folder, in the order of their names.
fn read_folder(folder: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

fn keep(corpus: &Path, input: &[u8]) -> PathBuf {
    let folder = corpus.with_file_name("crashes");
    let sum = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let path = folder.join(format!("{sum:016x}"));
    if let Err(error) = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, input)) {
        eprintln!("write {}: {error}", path.display());
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutants_follow_from_their_seed_and_stay_short() {
        let inputs = [b"a valid input".to_vec(), vec![7; MAX_LEN], Vec::new()];
        let (mut one, mut same) = (Mutator::new(1), Mutator::new(1));
        let mut changed = 0;
        for _ in 0..10_000 {
            let input = one.next(&inputs);
            assert_eq!(input, same.next(&inputs));
            assert!(input.len() <= MAX_LEN);
            changed += usize::from(!inputs.contains(&input));
        }
        assert!(changed > 9_000, "{changed}");
    }

    #[test]
    fn a_finding_is_kept_for_the_next_run() {
        let folder = std::env::temp_dir().join(format!("podopsy-fuzz-{}", std::process::id()));
        let corpus = folder.join("corpus");
        std::fs::create_dir_all(&corpus).unwrap();
        std::fs::write(corpus.join("valid"), b"0123456789").unwrap();
        let target = |input: &[u8]| assert_eq!(input.first(), Some(&b'0'));
        let found = catch_unwind(|| mutants(&corpus, target, Bounds::SMALL, Duration::from_secs(10)));
        assert!(found.is_err());
        let kept = read_folder(&folder.join("crashes"));
        assert!(kept.len() == 1 && kept[0].first() != Some(&b'0'));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
