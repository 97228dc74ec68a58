//! OOM kills.

use podopsy_wire::{BuildIdFrame, CGROUP_LEVELS, CGROUP_NAME_MAX, OOM_KERNEL_FRAMES, OOM_USER_FRAMES, Task};

use super::fields::{BadRecord, Fields};

/// A [`podopsy_wire::OomRecord`] with its stacks cut to their lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomDecoded {
    pub time_ns: u64,
    pub victim: Task,
    pub trigger: Task,
    /// Pages: file, anonymous, swapped, shared; None: this kernel did not say.
    pub rss_pages: Option<[u64; 4]>,
    pub oom_score_adj: Option<i16>,
    /// It was dying before it was marked: no kill.
    pub already_dying: bool,
    pub kernel: Vec<u64>,
    pub user: Vec<BuildIdFrame>,
    /// Path of the victim's memory cgroup from the hierarchy's root, as the kernel has it; None: not known, or deeper
    /// than the record. Names are the container's to choose: escape before showing.
    pub cgroup_path: Option<String>,
}

pub fn oom(bytes: &[u8]) -> Result<OomDecoded, BadRecord> {
    let mut fields = Fields::new("oom", bytes);
    let time_ns = fields.u64()?;
    let victim = fields.task()?;
    let trigger = fields.task()?;
    let mut pages = [0; 4];
    for slot in &mut pages {
        *slot = fields.u64()?;
    }
    let adj = fields.i32()?;
    let (kernel_len, user_len) = (fields.i32()?, fields.i32()?);
    let already_dying = fields.u32()? != 0;
    let mut kernel = Vec::with_capacity(OOM_KERNEL_FRAMES);
    for _ in 0..OOM_KERNEL_FRAMES {
        kernel.push(fields.u64()?);
    }
    let mut user = Vec::with_capacity(OOM_USER_FRAMES);
    for _ in 0..OOM_USER_FRAMES {
        user.push(BuildIdFrame { status: fields.i32()?, build_id: fields.array()?, offset: fields.u64()? });
    }
    let mut names = Vec::with_capacity(CGROUP_LEVELS);
    for _ in 0..CGROUP_LEVELS {
        names.push(fields.bytes(CGROUP_NAME_MAX)?);
    }
    kernel.truncate(frames(kernel_len, 8));
    user.truncate(frames(user_len, size_of::<BuildIdFrame>()));
    Ok(OomDecoded {
        time_ns,
        victim,
        trigger,
        rss_pages: (!pages.contains(&u64::MAX)).then(|| pages.map(clamp)),
        oom_score_adj: i16::try_from(adj).ok().filter(|adj| (-1000..=1000).contains(adj)),
        already_dying,
        kernel,
        user,
        cgroup_path: cgroup_path(&names),
    })
}

/// From the names on the way up, each NUL-terminated. The last must be empty, or the root was not reached.
fn cgroup_path(names: &[&[u8]]) -> Option<String> {
    let mut path = String::new();
    let ended =
        |name: &[u8]| Some(String::from_utf8_lossy(&name[..name.iter().position(|&b| b == 0)?]).into_owned());
    let names: Vec<String> = names.iter().map(|name| ended(name)).collect::<Option<_>>()?;
    let depth = names.iter().position(String::is_empty)?;
    for name in names[..depth].iter().rev() {
        path.push('/');
        path.push_str(name);
    }
    (!path.is_empty()).then_some(path)
}

/// Per-CPU counters may be below zero for a moment; the kernel's own log shows 0 then.
fn clamp(pages: u64) -> u64 {
    if pages > i64::MAX as u64 { 0 } else { pages }
}

fn frames(len: i32, size: usize) -> usize {
    usize::try_from(len).unwrap_or(0) / size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Vec<u8> {
        let mut out = vec![0; size_of::<podopsy_wire::OomRecord>()];
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
    fn what_the_kernel_did_not_say_stays_unknown() {
        let mut bytes = record();
        bytes[88..96].copy_from_slice(&u64::MAX.to_ne_bytes());
        bytes[120..124].copy_from_slice(&i32::MIN.to_ne_bytes());
        let decoded = oom(&bytes).unwrap();
        assert_eq!((decoded.rss_pages, decoded.oom_score_adj), (None, None));
    }

    #[test]
    fn a_path_that_does_not_reach_the_root_is_none() {
        let name = |text: &str| {
            [text.as_bytes(), &[0; 90]].concat()[..CGROUP_NAME_MAX.min(text.len() + 90)].to_vec()
        };
        let all = |names: &[&str]| {
            let mut names: Vec<_> = names.iter().map(|text| name(text)).collect();
            names.resize(CGROUP_LEVELS, name(""));
            cgroup_path(&names.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        assert_eq!(all(&["c0ffee", "pod7", "kubepods"]).as_deref(), Some("/kubepods/pod7/c0ffee"));
        assert_eq!((all(&[]), all(&["a"; CGROUP_LEVELS])), (None, None));
        assert_eq!(cgroup_path(&[&[b'x'; CGROUP_NAME_MAX]]), None);
    }

    #[test]
    fn a_short_record_is_an_error() {
        let whole = record();
        for cut in [0, 7, 100, whole.len() - 1] {
            assert!(oom(&whole[..cut]).is_err());
        }
    }
}
