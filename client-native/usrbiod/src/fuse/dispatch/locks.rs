//! POSIX and BSD locks.

use super::super::abi;
use super::{Answer, Call};
use crate::fs::locks::{ByteRange, FileId, Lock, LockKind, LockOwner, Space, Waited};
use crate::types::{Errno, Result};

impl Call<'_, '_> {
    fn owner(&self, id: u64) -> LockOwner {
        LockOwner { session: self.session.number, id }
    }

    fn file(&self) -> Result<FileId> {
        let (dev, ino) = self.session.fs.backing_key(self.ordinary()?)?;
        Ok(FileId { dev, ino })
    }

    /// What is asked for; no lock means to unlock.
    fn lock(&self, arg: &abi::LkIn) -> Result<(Space, ByteRange, Option<Lock>)> {
        let space = if arg.lk_flags & abi::LK_FLOCK != 0 { Space::Flock } else { Space::Posix };
        let range = ByteRange { start: arg.lk.start, end: arg.lk.end };
        if range.start > range.end {
            return Err(Errno::INVAL);
        }
        let kind = match arg.lk.kind as i32 {
            libc::F_RDLCK => LockKind::Read,
            libc::F_WRLCK => LockKind::Write,
            libc::F_UNLCK => return Ok((space, range, None)),
            _ => return Err(Errno::INVAL),
        };
        let lock = Lock { kind, range, owner: self.owner(arg.owner), pid: arg.lk.pid };
        Ok((space, range, Some(lock)))
    }

    pub(super) fn getlk(&mut self, arg: &abi::LkIn) -> Result<Answer> {
        let (space, _, wanted) = self.lock(arg)?;
        let wanted = wanted.ok_or(Errno::INVAL)?;
        let lk = match self.session.locks.get(self.file()?, space, &wanted) {
            None => abi::FileLock { kind: libc::F_UNLCK as u32, ..abi::FileLock::default() },
            Some(held) => abi::FileLock {
                start: held.range.start,
                end: held.range.end,
                kind: match held.kind {
                    LockKind::Read => libc::F_RDLCK as u32,
                    LockKind::Write => libc::F_WRLCK as u32,
                },
                pid: held.pid,
            },
        };
        self.put(&abi::LkOut { lk })
    }

    pub(super) fn setlk(&mut self, arg: &abi::LkIn, wait: bool) -> Result<Answer> {
        let (space, range, wanted) = self.lock(arg)?;
        let (table, file, unique) = (&self.session.locks, self.file()?, self.request.unique);
        if wanted.is_some() && space == Space::Posix {
            self.session.channel.lock_calls.locks(arg.fh, arg.owner);
        }
        let answers = match wanted {
            None => table.unlock(file, space, self.owner(arg.owner), range)?,
            Some(wanted) if !wait => table.set(file, space, &wanted)?,
            Some(wanted) => match table.wait(file, space, &wanted, unique)? {
                Waited::Granted(answers) => answers,
                Waited::Parked(answers) => {
                    (self.answer)(answers);
                    // Its interrupt may have come first; then nobody else will end the wait.
                    let interrupted = self.session.channel.lock_calls.take_interrupt(unique)
                        && table.cancel(self.session.number, unique);
                    return if interrupted { Err(Errno::INTR) } else { Ok(Answer::Silent) };
                }
            },
        };
        (self.answer)(answers);
        Ok(Answer::EMPTY)
    }

    /// Only waiting for a lock can be interrupted. The interrupt is noted first: if the request has not come to wait
    /// yet, it finds the note when it does.
    pub(super) fn interrupt(&mut self, unique: u64) -> Result<Answer> {
        let channel = &self.session.channel;
        channel.lock_calls.note_interrupt(unique);
        if self.session.locks.cancel(self.session.number, unique) {
            channel.lock_calls.take_interrupt(unique);
            channel.answer(unique, Err(Errno::INTR))?;
        }
        Ok(Answer::Silent)
    }

    /// A descriptor of `fh` was closed by `owner`: its POSIX locks on the file go.
    pub(super) fn close_locks(&mut self, fh: u64, owner: u64) -> Result<()> {
        self.session.channel.lock_calls.closes(fh, owner);
        self.release_locks(Space::Posix, owner)
    }

    /// The open file `fh` is gone: what was locked in its name goes.
    pub(super) fn forget_locks(&mut self, arg: &abi::ReleaseIn) -> Result<()> {
        for owner in self.session.channel.lock_calls.released(arg.fh) {
            self.release_locks(Space::Posix, owner)?;
        }
        match arg.release_flags & abi::RELEASE_FLOCK_UNLOCK {
            0 => Ok(()),
            _ => self.release_locks(Space::Flock, arg.lock_owner),
        }
    }

    fn release_locks(&mut self, space: Space, owner: u64) -> Result<()> {
        let answers = self.session.locks.release_owner(self.file()?, space, self.owner(owner));
        (self.answer)(answers);
        Ok(())
    }
}
