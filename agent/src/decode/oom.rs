//! OOM kills.

use podopsy_wire::{BuildIdFrame, OOM_KERNEL_FRAMES, OOM_USER_FRAMES, Task};

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
    })
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
    fn a_short_record_is_an_error() {
        let whole = record();
        for cut in [0, 7, 100, whole.len() - 1] {
            assert!(oom(&whole[..cut]).is_err());
        }
    }
}
