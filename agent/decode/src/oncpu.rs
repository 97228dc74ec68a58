//! Samples: a task and its two stacks.

use podopsy_wire::{End, FRAMES_MAX, FileKey, PYTHON_FRAMES_MAX, PythonEnd, TableRequest, Task};

use super::fields::{BadRecord, Fields};

/// A sample as the kernel took it; addresses innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    pub task: Task,
    pub kernel: Vec<u64>,
    pub user: Vec<u64>,
    /// Why the user stack ended, and the frame of it that this is about.
    pub end: End,
    pub end_frame: u32,
    pub python: Python,
}

/// Python's frames, as the interpreter lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Python {
    pub end: PythonEnd,
    /// The interpreter's file, and what leads from an address in its code to the offset in it.
    pub number: u32,
    pub to_offset: u64,
    /// Innermost first: the code object's address, and where it stands with [`podopsy_wire::PYTHON_ENTRY`].
    pub frames: Vec<(u64, u64)>,
}

/// Reads a [`podopsy_wire::Sample`] and the stacks behind it.
pub fn sample(bytes: &[u8]) -> Result<Stack, BadRecord> {
    let mut fields = Fields::new("oncpu", bytes);
    let task = fields.task()?;
    let (kernel_len, user_len) = (fields.i32()?, fields.i32()?);
    let (end, end_frame) = (fields.u32()?, fields.u32()?);
    let end = End::ALL.get(end as usize).copied().ok_or_else(|| fields.bad())?;
    let (python_len, python_end) = (fields.u32()?, fields.u32()?);
    let (number, _) = (fields.u32()?, fields.u32()?);
    let to_offset = fields.u64()?;
    let kernel = addresses(&mut fields, kernel_len)?;
    let user = addresses(&mut fields, user_len)?;
    let python_end = PythonEnd::ALL.get(python_end as usize).copied().ok_or_else(|| fields.bad())?;
    if python_len % 16 != 0 || python_len as usize > PYTHON_FRAMES_MAX * 16 {
        return Err(fields.bad());
    }
    let frames =
        (0..python_len / 16).map(|_| Ok((fields.u64()?, fields.u64()?))).collect::<Result<_, _>>()?;
    let python = Python { end: python_end, number, to_offset, frames };
    Ok(Stack { task, kernel, user, end, end_frame, python })
}

/// Reads a [`podopsy_wire::TableRequest`].
pub fn table_request(bytes: &[u8]) -> Result<TableRequest, BadRecord> {
    let mut fields = Fields::new("table request", bytes);
    let key =
        FileKey { inode: fields.u64()?, size: fields.u64()?, device: fields.u32()?, changed: fields.u32()? };
    Ok(TableRequest { key, address: fields.u64()?, pid: fields.u32()?, unused: fields.u32()? })
}

/// `len`: bytes, or a negative errno where there was no stack.
fn addresses(fields: &mut Fields<'_>, len: i32) -> Result<Vec<u64>, BadRecord> {
    let Ok(len) = usize::try_from(len) else { return Ok(Vec::new()) };
    if len % 8 != 0 || len > FRAMES_MAX * 8 {
        return Err(fields.bad());
    }
    (0..len / 8).map(|_| fields.u64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kernel_len: i32, user_len: i32, addresses: &[u64]) -> Vec<u8> {
        let mut out = vec![0; 40];
        out[16..20].copy_from_slice(&77u32.to_ne_bytes());
        out.extend(kernel_len.to_ne_bytes());
        out.extend(user_len.to_ne_bytes());
        out.extend((End::NoRule as u32).to_ne_bytes());
        out.extend(1u32.to_ne_bytes());
        out.extend([0; 24]);
        out.extend(addresses.iter().flat_map(|a| a.to_ne_bytes()));
        out
    }

    #[test]
    fn both_stacks_come_out_in_order() {
        let stack = sample(&bytes(8, 16, &[1, 2, 3])).unwrap();
        assert_eq!((stack.end, stack.end_frame), (End::NoRule, 1));
        assert_eq!((stack.task.pid, stack.kernel, stack.user), (77, vec![1], vec![2, 3]));
    }

    #[test]
    fn an_errno_is_no_stack() {
        let stack = sample(&bytes(-14, 8, &[9])).unwrap();
        assert_eq!((stack.kernel, stack.user), (vec![], vec![9]));
    }

    #[test]
    fn python_frames_come_behind_the_stacks() {
        let mut sampled = bytes(0, 8, &[9, 0x1000, 4, 0x2000, 6]);
        sampled[56..60].copy_from_slice(&32u32.to_ne_bytes());
        sampled[60..64].copy_from_slice(&(PythonEnd::Truncated as u32).to_ne_bytes());
        let stack = sample(&sampled).unwrap();
        assert_eq!((stack.user, stack.python.end), (vec![9], PythonEnd::Truncated));
        assert_eq!(stack.python.frames, [(0x1000, 4), (0x2000, 6)]);
        for lie in [8u32, 48, u32::MAX - 15] {
            sampled[56..60].copy_from_slice(&lie.to_ne_bytes());
            assert!(sample(&sampled).is_err(), "{lie}");
        }
        assert!(PythonEnd::ALL.iter().zip(0..).all(|(end, index)| *end as u32 == index));
    }

    #[test]
    fn a_request_names_file_address_and_process() {
        let mut bytes: Vec<u8> = [7u64, 4096].iter().flat_map(|n| n.to_ne_bytes()).collect();
        bytes.extend([8u32, 9].iter().flat_map(|n| n.to_ne_bytes()));
        bytes.extend(0x7f00_0000_1000_u64.to_ne_bytes());
        bytes.extend([42u32, 0].iter().flat_map(|n| n.to_ne_bytes()));
        let request = table_request(&bytes).unwrap();
        assert_eq!((request.key.inode, request.key.device, request.key.changed), (7, 8, 9));
        assert_eq!((request.address, request.pid), (0x7f00_0000_1000, 42));
        assert!(table_request(&bytes[..39]).is_err());
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert!(sample(&bytes(16, 0, &[1])).is_err());
        assert!(sample(&bytes(7, 0, &[1])).is_err());
        assert!(sample(&bytes(i32::MAX, 0, &[1])).is_err());
        assert!(sample(&[0; 10]).is_err());
        let mut bad_end = bytes(0, 0, &[]);
        bad_end[48] = 200;
        assert!(sample(&bad_end).is_err());
    }
}
