//! Has the file behind a mapping opened.
//!
//! Must not depend on: ELF, caches. Nothing here touches a file: an opener does (`podopsy_opener`).

use podopsy_opener::{FileHandle, MappedArea, OpenError, Openers, Target};
use podopsy_worker::Tenant;

use super::maps::{Area, FilesystemKind};
use crate::StackLossReason;

/// The reasons that will not change for this file. For the others, the process may have ended or mapped something else.
pub(crate) const PERMANENT: [StackLossReason; 2] =
    [StackLossReason::FileNotRegular, StackLossReason::FileTooLarge];

/// Opens the very inode behind `area`, which lies on `filesystem`.
pub(crate) fn mapped_file(
    openers: &Openers,
    (pid, tenant): (u32, Tenant),
    area: &Area,
    filesystem: FilesystemKind,
) -> Result<FileHandle, StackLossReason> {
    let target = Target { tenant, pid, may_hang: filesystem == FilesystemKind::Remote };
    let (start, end) = area.in_place_of.unwrap_or((area.start, area.end));
    let area =
        MappedArea { start, end, device: area.device, inode: area.inode, path: area.file_path().to_vec() };
    openers.mapped_file(target, area).map_err(loss)
}

/// The counter of the loss.
pub(super) fn loss(error: OpenError) -> StackLossReason {
    match error {
        OpenError::OutOfReach | OpenError::NotPermitted => StackLossReason::FileOutOfReach,
        OpenError::NotRegular => StackLossReason::FileNotRegular,
        OpenError::TooLarge => StackLossReason::FileTooLarge,
        OpenError::Replaced => StackLossReason::FileReplaced,
        OpenError::NoAnswer => StackLossReason::FileSystemNoAnswer,
        OpenError::Unavailable => StackLossReason::OpenerUnavailable,
    }
}
