//! How large a session's volume is. The backing file system does not know: a volume is a directory of it.

use super::types::Statfs;
use serde::{Deserialize, Serialize};

/// The size of a volume in bytes, and how much of it is used, as the peer measured it last. A `total` of 0: the volume has
/// no size of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// Used, as far as known.
    #[serde(default)]
    pub used: u64,
}

impl Space {
    /// What `statfs` answers for the volume, from what the backing file system answers: `blocks` less `bfree`, which `df`
    /// calls used, is what the volume uses; `bavail` is never more than the backing file system has. Inodes stay those of the
    /// backing file system, where the volume has no limit of them.
    pub(super) fn of_volume(self, backing: Statfs) -> Statfs {
        if self.total == 0 {
            return backing;
        }
        let in_blocks = |bytes: u64| bytes / u64::from(backing.frsize.max(1));
        let left = in_blocks(self.total.saturating_sub(self.used));
        Statfs { blocks: in_blocks(self.total), bfree: left, bavail: backing.bavail.min(left), ..backing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKING: Statfs = Statfs {
        blocks: 1000,
        bfree: 500,
        bavail: 400,
        files: 77,
        ffree: 66,
        bsize: 8192,
        namelen: 255,
        frsize: 4096,
    };

    fn blocks(total: u64, used: u64) -> (u64, u64, u64) {
        let found = Space { total, used }.of_volume(BACKING);
        let unchanged =
            Statfs { blocks: BACKING.blocks, bfree: BACKING.bfree, bavail: BACKING.bavail, ..found };
        assert_eq!(unchanged, BACKING, "only the three block counts are the volume's");
        (found.blocks, found.bfree, found.bavail)
    }

    #[test]
    fn what_is_left_of_the_volume_is_free() {
        assert_eq!(blocks(100 * 4096, 30 * 4096), (100, 70, 70));
        assert_eq!(blocks(100 * 4096 + 1, 30 * 4096 - 1), (100, 70, 70));
    }

    #[test]
    fn no_more_is_available_than_the_backing_file_system_has() {
        assert_eq!(blocks(450 * 4096, 0), (450, 450, 400));
        assert_eq!(blocks(10_000 * 4096, 4096), (10_000, 9_999, 400));
    }

    #[test]
    fn a_volume_that_outgrew_its_size_is_full() {
        assert_eq!(blocks(100 * 4096, 101 * 4096), (100, 0, 0));
        assert_eq!(blocks(1, u64::MAX), (0, 0, 0));
    }

    #[test]
    fn without_a_size_the_backing_file_system_answers() {
        assert_eq!(blocks(0, 30 * 4096), (1000, 500, 400));
    }
}
