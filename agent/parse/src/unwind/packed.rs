//! [`FileRows`] as they cross from the worker to the agent: arrays of bytes, which are copied and not walked.
//!
//! The worker may have been taken over by the file that it read. So what the agent relies on is checked when the rows are
//! unpacked: offsets ascend, and each row's rule exists.

use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, Rule};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::rows::{FileRows, MAX_ROWS, MAX_RULES, UnwindRow};
use crate::StackLosses;

/// Bytes of a row: the offset, then the rule's index.
const ROW: usize = 6;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PackedRows {
    rows: ByteBuf,
    rules: ByteBuf,
    losses: StackLosses,
}

impl From<FileRows> for PackedRows {
    fn from(rows: FileRows) -> PackedRows {
        let mut packed = Vec::with_capacity(rows.rows.len() * ROW);
        for row in &rows.rows {
            packed.extend(row.offset.to_le_bytes());
            packed.extend(row.rule.to_le_bytes());
        }
        let rules = bytemuck::cast_slice::<Rule, u8>(&rows.rules).to_vec();
        PackedRows { rows: ByteBuf::from(packed), rules: ByteBuf::from(rules), losses: rows.losses }
    }
}

impl TryFrom<PackedRows> for FileRows {
    type Error = &'static str;

    fn try_from(packed: PackedRows) -> Result<FileRows, &'static str> {
        let PackedRows { rows, rules, losses } = packed;
        if rows.len() % ROW != 0 || rows.len() / ROW > MAX_ROWS + 2 {
            return Err("not a list of rows");
        }
        if rules.len() % size_of::<Rule>() != 0 || rules.len() / size_of::<Rule>() > MAX_RULES {
            return Err("not a list of rules");
        }
        let rules: Vec<Rule> =
            rules.chunks_exact(size_of::<Rule>()).map(bytemuck::pod_read_unaligned).collect();
        let special = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind);
        if !rules.starts_with(&special) {
            return Err("the special rules are missing");
        }
        let row = |bytes: &[u8]| UnwindRow {
            offset: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            rule: u16::from_le_bytes([bytes[4], bytes[5]]),
        };
        let rows: Vec<UnwindRow> = rows.chunks_exact(ROW).map(row).collect();
        if rows.iter().any(|row| usize::from(row.rule) >= rules.len()) {
            return Err("a row without a rule");
        }
        if !rows.is_sorted_by(|one, next| one.offset < next.offset) {
            return Err("rows out of order");
        }
        Ok(FileRows { rows, rules, losses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(rows: &[(u32, u16)]) -> PackedRows {
        let rules = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind).to_vec();
        let rows = rows.iter().map(|&(offset, rule)| UnwindRow { offset, rule }).collect();
        PackedRows::from(FileRows { rows, rules, losses: StackLosses::default() })
    }

    #[test]
    fn rows_cross_unchanged() {
        let rows = FileRows::try_from(packed(&[(1, 0), (70_000, 2), (u32::MAX, 1)])).unwrap();
        assert_eq!(rows.rows[1], UnwindRow { offset: 70_000, rule: 2 });
        assert_eq!((rows.rows.len(), rows.rules.len()), (3, 3));
    }

    #[test]
    fn rows_that_the_agent_could_not_use_are_refused() {
        for rows in [&[(2, 0), (1, 0)][..], &[(1, 0), (1, 1)], &[(1, 3)]] {
            assert!(FileRows::try_from(packed(rows)).is_err(), "{rows:?}");
        }
        let mut short = packed(&[(1, 0)]);
        short.rows.pop();
        assert!(FileRows::try_from(short).is_err());
        let no_rules = PackedRows { rules: ByteBuf::new(), ..packed(&[]) };
        assert!(FileRows::try_from(no_rules).is_err());
    }
}
