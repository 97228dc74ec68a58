//! Reads a record's fields in order; a record that is too short is an error, never a panic.

use podopsy_wire::Task;

/// A record that does not have its probe's shape: a bug of ours, counted and shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {record} record of {len} bytes is too short or inconsistent")]
pub struct BadRecord {
    pub record: &'static str,
    pub len: usize,
}

pub struct Fields<'a> {
    record: &'static str,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(record: &'static str, bytes: &'a [u8]) -> Fields<'a> {
        Fields { record, whole: bytes.len(), rest: bytes }
    }

    pub fn bad(&self) -> BadRecord {
        BadRecord { record: self.record, len: self.whole }
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], BadRecord> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.bad())?;
        self.rest = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BadRecord> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| self.bad())
    }

    pub fn u16(&mut self) -> Result<u16, BadRecord> {
        self.array().map(u16::from_ne_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, BadRecord> {
        self.array().map(u32::from_ne_bytes)
    }

    pub fn i32(&mut self) -> Result<i32, BadRecord> {
        self.array().map(i32::from_ne_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, BadRecord> {
        self.array().map(u64::from_ne_bytes)
    }

    pub fn task(&mut self) -> Result<Task, BadRecord> {
        Ok(Task {
            cgroup_id: self.u64()?,
            start_ns: self.u64()?,
            pid: self.u32()?,
            tid: self.u32()?,
            comm: self.array()?,
        })
    }
}
