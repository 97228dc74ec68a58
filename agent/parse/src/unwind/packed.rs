//! [`FileRows`] as they cross from the worker to the agent: arrays of bytes, which are copied and not walked. A large file has
//! millions of rows, so neither side makes another copy of them on the way.
//!
//! The worker may have been taken over by the file that it read. So what the agent relies on is checked when the rows are
//! unpacked: offsets ascend, and each row's rule exists.

use std::fmt;

use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, Rule};
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use super::rows::{FileRows, MAX_ROWS, MAX_RULES, UnwindRow};
use crate::StackLosses;

/// Bytes of a row: the offset, then the rule's index.
const ROW: usize = 6;
/// Rows that are packed at a time.
const CHUNK: usize = 8192;

#[derive(Serialize)]
struct Packed<'a> {
    rows: RowsToPack<'a>,
    rules: &'a Bytes,
    losses: &'a StackLosses,
}

#[derive(Deserialize)]
struct Unpacked<'a> {
    rows: UnpackedRows,
    #[serde(borrow)]
    rules: &'a Bytes,
    losses: StackLosses,
}

impl Serialize for FileRows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rules = Bytes::new(bytemuck::cast_slice::<Rule, u8>(&self.rules));
        Packed { rows: RowsToPack(&self.rows), rules, losses: &self.losses }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FileRows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FileRows, D::Error> {
        let Unpacked { rows: UnpackedRows(rows), rules, losses } = Unpacked::deserialize(deserializer)?;
        if rules.len() % size_of::<Rule>() != 0 || rules.len() / size_of::<Rule>() > MAX_RULES {
            return Err(D::Error::custom("not a list of rules"));
        }
        let rules: Vec<Rule> =
            rules.chunks_exact(size_of::<Rule>()).map(bytemuck::pod_read_unaligned).collect();
        let special = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind);
        if !rules.starts_with(&special) {
            return Err(D::Error::custom("the special rules are missing"));
        }
        if rows.iter().any(|row| usize::from(row.rule) >= rules.len()) {
            return Err(D::Error::custom("a row without a rule"));
        }
        if !rows.is_sorted_by(|one, next| one.offset < next.offset) {
            return Err(D::Error::custom("rows out of order"));
        }
        Ok(FileRows { rows, rules, losses })
    }
}

/// Rows as a list of chunks.
struct RowsToPack<'a>(&'a [UnwindRow]);

impl Serialize for RowsToPack<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let chunks = self.0.chunks(CHUNK);
        let mut list = serializer.serialize_seq(Some(chunks.len()))?;
        let mut packed = Vec::with_capacity(CHUNK.min(self.0.len()) * ROW);
        for chunk in chunks {
            packed.clear();
            for row in chunk {
                packed.extend(row.offset.to_le_bytes());
                packed.extend(row.rule.to_le_bytes());
            }
            list.serialize_element(Bytes::new(&packed))?;
        }
        list.end()
    }
}

struct UnpackedRows(Vec<UnwindRow>);

impl<'de> Deserialize<'de> for UnpackedRows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UnpackedRows, D::Error> {
        deserializer.deserialize_seq(ChunkVisitor)
    }
}

struct ChunkVisitor;

impl<'de> Visitor<'de> for ChunkVisitor {
    type Value = UnpackedRows;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("chunks of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut chunks: A) -> Result<UnpackedRows, A::Error> {
        let mut rows = Vec::new();
        while let Some(chunk) = chunks.next_element::<&Bytes>()? {
            let is_whole = !chunk.is_empty() && chunk.len() % ROW == 0;
            if !is_whole || chunk.len() / ROW > MAX_ROWS + 2 - rows.len() {
                return Err(A::Error::custom("not a list of rows"));
            }
            rows.extend(chunk.chunks_exact(ROW).map(|bytes| UnwindRow {
                offset: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                rule: u16::from_le_bytes([bytes[4], bytes[5]]),
            }));
        }
        Ok(UnpackedRows(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(u32, u16)]) -> FileRows {
        let rules = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind).to_vec();
        let rows = rows.iter().map(|&(offset, rule)| UnwindRow { offset, rule }).collect();
        FileRows { rows, rules, losses: StackLosses::default() }
    }

    fn cross(rows: &impl Serialize) -> Result<FileRows, postcard::Error> {
        postcard::from_bytes(&postcard::to_stdvec(rows).unwrap())
    }

    #[test]
    fn rows_cross_unchanged() {
        let few = cross(&rows(&[(1, 0), (70_000, 2), (u32::MAX, 1)])).unwrap();
        assert_eq!(few.rows[1], UnwindRow { offset: 70_000, rule: 2 });
        assert_eq!((few.rows.len(), few.rules.len()), (3, 3));
        let many: Vec<(u32, u16)> = (0..3 * CHUNK as u32 + 1).map(|at| (at, (at % 3) as u16)).collect();
        assert_eq!(cross(&rows(&many)).unwrap().rows, rows(&many).rows);
        assert!(cross(&rows(&[])).unwrap().rows.is_empty());
    }

    #[test]
    fn rows_that_the_agent_could_not_use_are_refused() {
        for bad in [&[(2, 0), (1, 0)][..], &[(1, 0), (1, 1)], &[(1, 3)]] {
            assert!(cross(&rows(bad)).is_err(), "{bad:?}");
        }
        let good = rows(&[(1, 0)]);
        let rules = Bytes::new(bytemuck::cast_slice::<Rule, u8>(&good.rules));
        let crossing = |chunks: &[&[u8]], rules: &Bytes| {
            let chunks: Vec<&Bytes> = chunks.iter().copied().map(Bytes::new).collect();
            cross(&(chunks, rules, StackLosses::default()))
        };
        assert!(crossing(&[&[1, 0, 0, 0, 0, 0]], rules).is_ok());
        assert!(crossing(&[&[1, 0, 0, 0, 0]], rules).is_err(), "half a row");
        assert!(crossing(&[&[], &[1, 0, 0, 0, 0, 0]], rules).is_err(), "an empty chunk");
        assert!(crossing(&[&[1, 0, 0, 0, 0, 0]], Bytes::new(&[])).is_err(), "no rules");
        let too_many = vec![0; (MAX_ROWS + 3) * ROW];
        assert!(crossing(&[&too_many], rules).is_err());
    }
}
