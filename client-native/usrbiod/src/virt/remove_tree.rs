//! Removes a tree, as `rm -r` would, with the permissions of the calling thread.
//!
//! Others may change the tree meanwhile. So nothing is found by path: every step is relative to an open directory, links are
//! not followed, mounts are not entered. Of a deep tree only the last [`OPEN`] directories are open. The way back up to one
//! that was closed leads through `..`, and is gone only if the directory there is the one that it came from.

use crate::types::{Errno, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories that are open at a time.
const OPEN: usize = 32;
/// How often directories that others fill again are emptied.
const RETRIES: u32 = 64;

/// Removes a name that is no directory's.
pub(super) type Unlink<'a> = dyn Fn(BorrowedFd<'_>, &CStr) -> Result<()> + 'a;

/// Removes `parent`/`name`, and all below if it is a directory. It stops at the first error; what is gone by then is gone.
/// `ENOTEMPTY`: others put files there faster than they could be removed.
/// `unlink` removes what is no directory.
pub(super) fn remove_tree(parent: impl AsFd, name: &CStr, unlink: &Unlink<'_>) -> Result<()> {
    let parent = parent.as_fd();
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if remove_one(parent, name, FileType::from_raw_mode(stat.st_mode), unlink)? {
        return Ok(());
    }
    let mut walk = Walk { parent, unlink, retries: RETRIES, levels: Vec::new() };
    walk.enter(name)?;
    while walk.step()? {}
    Ok(())
}

/// Removes one name, which may be gone already; false for a directory that is not empty. `ENOTDIR`: it was a directory just
/// now, and is another kind of file since.
fn remove_one(dir: BorrowedFd<'_>, name: &CStr, kind: FileType, unlink: &Unlink<'_>) -> Result<bool> {
    if kind != FileType::Directory {
        match unlink(dir, name) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// A directory that is being emptied.
struct Level {
    /// Device and inode.
    id: (u64, u64),
    /// `None`: closed for now, and to be read again from its start.
    dir: Option<Dir>,
    /// Its name in the directory above; `None` if that was closed meanwhile.
    name: Option<CString>,
}

struct Walk<'a> {
    /// Holds the top of the tree.
    parent: BorrowedFd<'a>,
    unlink: &'a Unlink<'a>,
    retries: u32,
    /// From the top of the tree down.
    levels: Vec<Level>,
}

impl Walk<'_> {
    /// Goes one step; false when the top is gone.
    fn step(&mut self) -> Result<bool> {
        let Some(dir) = self.levels.last_mut().and_then(|level| level.dir.as_mut()) else { return Ok(false) };
        let Some(entry) = dir.read() else { return self.leave() };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            return Ok(true);
        }
        let removed = match remove_one(dir.fd()?, name, entry.file_type(), self.unlink) {
            Ok(false) => self.enter(name),
            Ok(true) => return Ok(true),
            Err(errno) => Err(errno),
        };
        match removed {
            // Others were faster. What has the name now, if anything, is met again when this directory is not empty.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(true),
            other => other.map(|()| true),
        }
    }

    /// The fd of the last directory.
    fn current(&self) -> Result<BorrowedFd<'_>> {
        match self.levels.last() {
            Some(level) => level.dir.as_ref().ok_or(Errno::BADF)?.fd(),
            None => Ok(self.parent),
        }
    }

    /// Opens the directory `name` in the last one.
    fn enter(&mut self, name: &CStr) -> Result<()> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = open_directory(self.current()?, name, resolve)?;
        let id = identity(&fd)?;
        self.levels.push(Level { id, dir: Some(Dir::new(fd)?), name: Some(name.to_owned()) });
        if let Some(far) = self.levels.len().checked_sub(OPEN + 1) {
            self.levels[far].dir = None;
            self.levels[far + 1].name = None;
        }
        Ok(())
    }

    /// The last directory has no more entries: goes up and removes it. False when it was the top.
    fn leave(&mut self) -> Result<bool> {
        let Some(Level { id, dir: Some(mut dir), name }) = self.levels.pop() else { return Ok(false) };
        self.reopen_last(&dir)?;
        // Without a name, the directory above was just opened again, and will come to this one.
        let Some(name) = name else { return Ok(true) };
        match remove_one(self.current()?, &name, FileType::Directory, self.unlink) {
            Ok(true) | Err(Errno::NOTDIR) => Ok(!self.levels.is_empty()),
            Ok(false) => {
                // Others add entries, or the file system hid some while others went.
                self.retries = self.retries.checked_sub(1).ok_or(Errno::NOTEMPTY)?;
                dir.rewind();
                self.levels.push(Level { id, dir: Some(dir), name: Some(name) });
                Ok(true)
            }
            Err(errno) => Err(errno),
        }
    }

    /// If the last directory was closed, opens it again from `child`, which lay in it. `EAGAIN`: it was moved meanwhile;
    /// what lies above it now is not to be removed.
    fn reopen_last(&mut self, child: &Dir) -> Result<()> {
        let Some(level) = self.levels.last_mut().filter(|level| level.dir.is_none()) else { return Ok(()) };
        let fd = open_directory(child.fd()?, c"..", ResolveFlags::NO_XDEV)?;
        if identity(&fd)? != level.id {
            return Err(Errno::AGAIN);
        }
        level.dir = Some(Dir::new(fd)?);
        Ok(())
    }
}

fn open_directory(at: BorrowedFd<'_>, name: &CStr, resolve: ResolveFlags) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(at, name, flags, Mode::empty(), resolve)
}

fn identity(fd: &OwnedFd) -> Result<(u64, u64)> {
    rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn dir(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        rustix::fs::unlinkat(dir, name, AtFlags::empty())
    }

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let temp = tempfile::tempdir().unwrap();
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "x").unwrap();
        let top = temp.path().join("top");
        for sub in ["a/b/c", "empty", "d"] {
            fs::create_dir_all(top.join(sub)).unwrap();
        }
        fs::write(top.join("a/b/file"), "x").unwrap();
        symlink(&outside, top.join("a/link")).unwrap();
        symlink("../outside", top.join("d/link")).unwrap();
        symlink("nowhere", top.join("broken")).unwrap();
        remove_tree(dir(temp.path()), c"top", &unlink).unwrap();
        assert!(!top.exists() && outside.join("keep").exists());
    }

    #[test]
    fn a_file_a_link_and_an_empty_directory_go_as_well() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "x").unwrap();
        symlink("file", temp.path().join("link")).unwrap();
        fs::create_dir(temp.path().join("dir")).unwrap();
        remove_tree(dir(temp.path()), c"link", &unlink).unwrap();
        assert!(temp.path().join("file").exists());
        for name in [c"file", c"dir"] {
            remove_tree(dir(temp.path()), name, &unlink).unwrap();
        }
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        assert_eq!(remove_tree(dir(temp.path()), c"dir", &unlink), Err(Errno::NOENT));
    }

    /// Makes `depth` directories below each other, with a second one beside each.
    fn deep(root: &Path, depth: usize) {
        let mut at = dir(root);
        for i in 0..depth {
            let name = format!("{i:->20}");
            rustix::fs::mkdirat(&at, "beside", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = open_directory(at.as_fd(), &CString::new(name).unwrap(), ResolveFlags::empty()).unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_a_path_can_name_needs_few_fds_and_no_stack() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("top")).unwrap();
        deep(&temp.path().join("top"), 300);
        let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
        let (before, most) = (fds(), std::cell::Cell::new(0));
        let parent = dir(temp.path());
        let mut walk = Walk { parent: parent.as_fd(), unlink: &unlink, retries: 0, levels: Vec::new() };
        walk.enter(c"top").unwrap();
        while walk.step().unwrap() {
            let open = walk.levels.iter().filter(|level| level.dir.is_some()).count();
            most.set(most.get().max(open));
        }
        assert_eq!(most.get(), OPEN);
        assert!(fds() < before + OPEN);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_moved_out_of_the_tree_does_not_take_the_removal_with_it() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("top")).unwrap();
        deep(&temp.path().join("top"), OPEN + 8);
        fs::create_dir(temp.path().join("safe")).unwrap();
        fs::write(temp.path().join("safe/file"), "x").unwrap();
        let parent = dir(temp.path());
        let mut walk = Walk { parent: parent.as_fd(), unlink: &unlink, retries: 0, levels: Vec::new() };
        walk.enter(c"top").unwrap();
        while walk.levels.len() < OPEN + 8 {
            walk.step().unwrap();
        }
        // The level below the deepest closed one goes elsewhere: `..` of it is not in the tree any more.
        let path: String = (0..8).map(|i| format!("/{i:->20}")).collect();
        fs::rename(format!("{}/top{path}", temp.path().display()), temp.path().join("safe/moved")).unwrap();
        let end = loop {
            match walk.step() {
                Ok(true) => {}
                end => break end,
            }
        };
        assert_eq!(end, Err(Errno::AGAIN));
        assert!(temp.path().join("safe/file").exists());
    }

    #[test]
    fn files_that_appear_meanwhile_do_not_keep_it_for_ever() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("top");
        fs::create_dir_all(top.join("sub")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0.. {
                    if stop.load(Ordering::Relaxed)
                        || fs::write(top.join(format!("sub/{}", i % 50)), "").is_err()
                    {
                        break;
                    }
                }
            });
            let removed = remove_tree(dir(temp.path()), c"top", &unlink);
            stop.store(true, Ordering::Relaxed);
            assert!(matches!(removed, Ok(()) | Err(Errno::NOTEMPTY)), "{removed:?}");
        });
    }
}
