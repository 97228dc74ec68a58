//! OOM kills.

use podopsy_wire::{BuildIdFrame, CGROUP_NAME_MAX, OomRecord, Task};

use super::read::{self, BadRecord};

/// An [`OomRecord`] with its stacks cut to their lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomDecoded {
    pub time_ns: u64,
    pub victim: Task,
    pub trigger: Task,
    /// Pages: file, anonymous, swapped, shared; None: not known on this kernel.
    pub rss_pages: Option<[u64; 4]>,
    /// None: not known on this kernel.
    pub oom_score_adj: Option<i16>,
    /// The victim was dying before it was marked, so this is not a kill.
    pub already_dying: bool,
    /// Which of the trigger's programs its user stack is of ([`podopsy_wire::Sample::image`]).
    pub image: u64,
    /// The trigger's stacks, innermost frame first.
    pub kernel: Vec<u64>,
    pub user: Vec<BuildIdFrame>,
    /// Path of the victim's memory cgroup from the root of the hierarchy, as the kernel has it. None: not known, or
    /// deeper than the record. The container chooses names in it, so it must be escaped before it is shown.
    pub cgroup_path: Option<String>,
}

/// Decodes an [`OomRecord`].
pub fn oom(bytes: &[u8]) -> Result<OomDecoded, BadRecord> {
    let record: OomRecord = read::whole("oom", bytes)?;
    let pages = record.rss_pages;
    let score = i16::try_from(record.oom_score_adj).ok();
    Ok(OomDecoded {
        time_ns: record.time_ns,
        victim: record.victim,
        trigger: record.trigger,
        rss_pages: (!pages.contains(&u64::MAX)).then(|| pages.map(clamp)),
        oom_score_adj: score.filter(|score| (-1000..=1000).contains(score)),
        already_dying: record.already_dying != 0,
        image: record.image,
        kernel: stack(&record.kernel, record.kernel_len),
        user: stack(&record.user, record.user_len),
        cgroup_path: cgroup_path(&record.cgroup),
    })
}

/// The valid frames of a stack. `len` is in bytes; a negative errno means that there is no stack.
fn stack<F: Copy>(frames: &[F], len: i32) -> Vec<F> {
    let count = usize::try_from(len).unwrap_or(0) / size_of::<F>();
    frames[..count.min(frames.len())].to_vec()
}

/// Joins the NUL-terminated names on the way from a cgroup up to the root, whose name is empty. None: a name is cut, or
/// the root was not reached.
fn cgroup_path(names: &[[u8; CGROUP_NAME_MAX]]) -> Option<String> {
    let text = |name: &[u8; CGROUP_NAME_MAX]| {
        let end = name.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&name[..end]).into_owned())
    };
    let names: Vec<String> = names.iter().map(text).collect::<Option<_>>()?;
    let depth = names.iter().position(String::is_empty)?;
    let path: String = names[..depth].iter().rev().flat_map(|name| ["/", name.as_str()]).collect();
    (!path.is_empty()).then_some(path)
}

/// Per-CPU counters may be below zero for a moment; the kernel's own log shows 0 then.
fn clamp(pages: u64) -> u64 {
    if pages > i64::MAX as u64 { 0 } else { pages }
}

#[cfg(test)]
mod tests {
    use podopsy_wire::CGROUP_LEVELS;

    use super::*;

    fn record() -> Vec<u8> {
        let mut out = vec![0; size_of::<OomRecord>()];
        out[0..8].copy_from_slice(&5u64.to_ne_bytes());
        out[8 + 16..8 + 20].copy_from_slice(&42u32.to_ne_bytes());
        out[48 + 16..48 + 20].copy_from_slice(&43u32.to_ne_bytes());
        out
    }

    #[test]
    fn victim_and_trigger_are_not_mixed_up() {
        let decoded = oom(&record()).unwrap();
        assert_eq!((decoded.time_ns, decoded.victim.pid, decoded.trigger.pid), (5, 42, 43));
        assert_eq!(decoded.rss_pages, Some([0; 4]));
        assert!(decoded.kernel.is_empty() && decoded.user.is_empty());
    }

    #[test]
    fn what_the_kernel_did_not_pass_stays_unknown() {
        let mut bytes = record();
        bytes[88..96].copy_from_slice(&u64::MAX.to_ne_bytes());
        bytes[120..124].copy_from_slice(&i32::MIN.to_ne_bytes());
        let decoded = oom(&bytes).unwrap();
        assert_eq!((decoded.rss_pages, decoded.oom_score_adj), (None, None));
    }

    #[test]
    fn a_path_that_does_not_reach_the_root_is_none() {
        let all = |names: &[&str]| {
            let mut levels = [[0; CGROUP_NAME_MAX]; CGROUP_LEVELS];
            for (level, name) in levels.iter_mut().zip(names) {
                level[..name.len()].copy_from_slice(name.as_bytes());
            }
            cgroup_path(&levels)
        };
        assert_eq!(all(&["c0ffee", "pod7", "kubepods"]).as_deref(), Some("/kubepods/pod7/c0ffee"));
        assert_eq!((all(&[]), all(&["a"; CGROUP_LEVELS])), (None, None));
        assert_eq!(cgroup_path(&[[b'x'; CGROUP_NAME_MAX]]), None);
    }

    #[test]
    fn frames_beyond_the_lengths_are_cut_off() {
        let mut bytes = record();
        // `kernel_len` of two frames, `user_len` of more than there are.
        bytes[124..128].copy_from_slice(&16i32.to_ne_bytes());
        bytes[128..132].copy_from_slice(&i32::MAX.to_ne_bytes());
        let decoded = oom(&bytes).unwrap();
        assert_eq!((decoded.kernel.len(), decoded.user.len()), (2, 64));
    }

    #[test]
    fn a_record_of_another_length_is_an_error() {
        let whole = record();
        assert!(oom(&[whole.as_slice(), &[0]].concat()).is_err(), "trailing bytes");
        for cut in [0, 7, 100, whole.len() - 1] {
            assert!(oom(&whole[..cut]).is_err());
        }
    }
}
