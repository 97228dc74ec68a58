//! Samples: a task and its two stacks.

use podopsy_wire::{FRAMES_MAX, Task};

use super::fields::{BadRecord, Fields};

/// A sample as the kernel took it; addresses innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    pub task: Task,
    pub kernel: Vec<u64>,
    pub user: Vec<u64>,
}

/// Reads a [`podopsy_wire::Sample`] and the stacks behind it.
pub fn sample(bytes: &[u8]) -> Result<Stack, BadRecord> {
    let mut fields = Fields::new("oncpu", bytes);
    let task = fields.task()?;
    let (kernel_len, user_len) = (fields.i32()?, fields.i32()?);
    let kernel = addresses(&mut fields, kernel_len)?;
    let user = addresses(&mut fields, user_len)?;
    Ok(Stack { task, kernel, user })
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
        out.extend(addresses.iter().flat_map(|a| a.to_ne_bytes()));
        out
    }

    #[test]
    fn both_stacks_come_out_in_order() {
        let stack = sample(&bytes(8, 16, &[1, 2, 3])).unwrap();
        assert_eq!((stack.task.pid, stack.kernel, stack.user), (77, vec![1], vec![2, 3]));
    }

    #[test]
    fn an_errno_is_no_stack() {
        let stack = sample(&bytes(-14, 8, &[9])).unwrap();
        assert_eq!((stack.kernel, stack.user), (vec![], vec![9]));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert!(sample(&bytes(16, 0, &[1])).is_err());
        assert!(sample(&bytes(7, 0, &[1])).is_err());
        assert!(sample(&bytes(i32::MAX, 0, &[1])).is_err());
        assert!(sample(&[0; 10]).is_err());
    }
}
