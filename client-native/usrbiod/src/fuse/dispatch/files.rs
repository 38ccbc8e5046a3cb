//! Open files.

use super::super::{abi, reply};
use super::{Answer, Call};
use crate::types::{Errno, NodeId, Result};
use crate::virt::Ioctl;
use std::sync::atomic::Ordering;
use usrbio_wire::ioctl;

/// Most bytes of one `COPY_FILE_RANGE` whose answer has 32 bits (`MAX_RW_COUNT` of the kernel).
const MAX_COPY: u64 = 0x7fff_f000;

/// Is it for the end of the file, wherever the kernel thinks that is? Pages that were mapped and changed are not.
fn is_append(arg: &abi::WriteIn) -> bool {
    arg.flags & libc::O_APPEND as u32 != 0 && arg.write_flags & abi::WRITE_CACHE == 0
}

impl Call<'_, '_> {
    pub(super) fn open(&mut self, arg: &abi::OpenIn) -> Result<Answer> {
        let node = self.ordinary()?;
        if self.session.fs.look_again(node, self.request.caller.pid)? {
            return Err(Errno::STALE);
        }
        let kill = arg.open_flags & abi::OPEN_KILL_SUIDGID != 0;
        let opened = self.session.fs.open(node, arg.flags, kill, &self.request.caller, self.tgid())?;
        Ok(Answer::Opened(reply::opened(&opened)))
    }

    pub(super) fn read(&mut self, arg: &abi::ReadIn) -> Result<Answer> {
        let node = self.ordinary()?;
        let room = self.body.get_mut(..arg.size as usize).ok_or(Errno::INVAL)?;
        let len = self.session.fs.read(node, arg.fh, arg.offset, room)?;
        self.session.metrics.fuse_read_bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(Answer::Body(len))
    }

    pub(super) fn write(&mut self, arg: &abi::WriteIn, data: &[u8]) -> Result<Answer> {
        let node = self.ordinary()?;
        let kill = arg.write_flags & abi::WRITE_KILL_SUIDGID != 0;
        let len = if is_append(arg) {
            let (slot, request) = (&mut *self.slot, self.request);
            self.session.fs.append(node, arg.fh, data, |length| slot.begin(request, length))?
        } else {
            self.session.fs.write(node, arg.fh, arg.offset, data, kill)?
        };
        Ok(self.written(len))
    }

    /// An append that a predecessor began when the file had `length`.
    pub(super) fn append_again(&mut self, arg: &abi::WriteIn, data: &[u8], length: u64) -> Result<Answer> {
        let (node, slot, request) = (self.ordinary()?, &mut *self.slot, self.request);
        let begin = |length| slot.begin(request, length);
        let len = self.session.fs.append_again(node, arg.fh, data, length, begin)?;
        Ok(self.written(len))
    }

    fn written(&self, len: usize) -> Answer {
        self.session.metrics.fuse_write_bytes.fetch_add(len as u64, Ordering::Relaxed);
        Answer::Written(len as u32)
    }

    /// Each `close` of a file also drops the POSIX locks of its process on that file.
    pub(super) fn flush(&mut self, arg: &abi::FlushIn) -> Result<Answer> {
        let node = self.ordinary()?;
        let flushed = self.session.fs.flush(node, arg.fh);
        self.close_locks(arg.fh, arg.lock_owner)?;
        flushed.map(|()| Answer::EMPTY)
    }

    pub(super) fn release(&mut self, arg: &abi::ReleaseIn) -> Result<Answer> {
        let node = self.ordinary()?;
        let unlocked = self.forget_locks(arg);
        self.session.fs.release(node, arg.fh);
        unlocked.map(|()| Answer::EMPTY)
    }

    pub(super) fn fsync(&mut self, arg: &abi::FsyncIn) -> Result<Answer> {
        let datasync = arg.fsync_flags & abi::FSYNC_FDATASYNC != 0;
        self.session.fs.fsync(self.ordinary()?, arg.fh, datasync)?;
        Ok(Answer::EMPTY)
    }

    pub(super) fn fallocate(&mut self, arg: &abi::FallocateIn) -> Result<Answer> {
        self.session.fs.fallocate(self.ordinary()?, arg.fh, arg.offset, arg.length, arg.mode)?;
        Ok(Answer::EMPTY)
    }

    pub(super) fn lseek(&mut self, arg: &abi::LseekIn) -> Result<Answer> {
        let offset = self.session.fs.lseek(self.ordinary()?, arg.fh, arg.offset, arg.whence)?;
        self.put(&abi::LseekOut { offset })
    }

    pub(super) fn copy_file_range(&mut self, arg: &abi::CopyFileRangeIn, wide: bool) -> Result<Answer> {
        let from = (self.ordinary()?, arg.fh_in, arg.off_in);
        let to = (NodeId(arg.nodeid_out), arg.fh_out, arg.off_out);
        if to.0.is_virtual() {
            return Err(Errno::PERM);
        }
        let copied = self.session.fs.copy_file_range(from, to, arg.len.min(MAX_COPY), arg.flags)?;
        if wide {
            self.put(&abi::CopyFileRangeOut { bytes_copied: copied as u64 })
        } else {
            self.put(&abi::WriteOut { size: copied as u32, padding: 0 })
        }
    }

    pub(super) fn ioctl(&mut self, arg: &abi::IoctlIn, input: &[u8]) -> Result<Answer> {
        if matches!(
            arg.cmd,
            ioctl::RECURSIVE_RM | ioctl::HARDLINK | ioctl::PUNCH_HOLE | ioctl::MOVE | ioctl::REMOVE
        ) {
            self.session.fs.settled();
        }
        let call = Ioctl {
            node: self.request.node,
            fh: arg.fh,
            cmd: arg.cmd,
            flags: arg.flags,
            input,
            out_size: arg.out_size,
        };
        let output = self.session.virt.ioctl(&call, &self.request.caller)?;
        let at = reply::put(self.body, &abi::IoctlOut::default())?;
        let room = output.len().min(arg.out_size as usize);
        Ok(Answer::Body(at + reply::put_bytes(&mut self.body[at..], &output[..room])?))
    }
}
