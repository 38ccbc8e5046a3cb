//! The `/dev/fuse` fd of one session: requests in, replies and notifications out.

use super::abi::{self, NotifyInvalEntryOut, NotifyInvalInodeOut, OutHeader, init, notify};
use super::buffer::ReplyBuffer;
use super::gate::Gate;
use super::lock_calls::LockCalls;
use super::notify::{Note, Notes, Notifier};
use crate::state::records::HeaderRec;
use crate::sys::fuse_dev;
use crate::types::{Errno, NodeId, Result};
use rustix::fs::OFlags;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

/// The `/dev/fuse` fd of one session.
pub struct Channel {
    /// The fd itself; the peer that mounted holds a duplicate.
    pub fd: Arc<OwnedFd>,
    /// What the kernel is to forget: told without waiting.
    pub notes: Notes,
    /// Where long work waits while the session is not served.
    pub gate: Gate,
    /// Flags that the session wants beyond what all do ([`super::init::asked`]).
    asked: u64,
    /// Flags agreed at `INIT`, 0 before.
    agreed: AtomicU64,
    /// What is to be known of lock calls.
    pub(super) lock_calls: LockCalls,
}

impl Channel {
    /// The channel over a mounted `/dev/fuse`, which it makes non-blocking. `header` tells what was agreed with the
    /// kernel by an earlier process.
    pub fn new(fd: OwnedFd, asked: u64, header: &HeaderRec, notifier: &Notifier) -> Result<Channel> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        let agreed = if header.init_done == 1 { header.fuse_flags } else { 0 };
        let fd = Arc::new(fd);
        let notes = Notes::new(Teller(fd.clone()), notifier);
        let (agreed, gate) = (AtomicU64::new(agreed), Gate::default());
        Ok(Channel { fd, notes, gate, asked, agreed, lock_calls: LockCalls::default() })
    }

    /// Flags agreed at `INIT`; 0 before it.
    pub fn agreed(&self) -> u64 {
        self.agreed.load(Ordering::Relaxed)
    }

    pub(super) fn agree(&self, flags: u64) {
        self.agreed.store(flags, Ordering::Relaxed);
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    /// May files be read and written by the kernel itself: asked for and agreed?
    pub fn passthrough(&self) -> bool {
        self.asked & self.agreed() & init::PASSTHROUGH != 0
    }

    /// Can files that are open without the page cache be mapped (Linux 6.6)?
    pub fn maps_uncached(&self) -> bool {
        self.agreed() & init::DIRECT_IO_ALLOW_MMAP != 0
    }

    /// Reads one request. `EAGAIN`: there is none. `ENODEV`: unmounted. `ENOENT`: it was aborted meanwhile.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        rustix::io::read(&self.fd, buffer)
    }

    /// Answers with the first `len` bytes of the body in `reply`.
    pub(super) fn reply(&self, unique: u64, reply: &mut ReplyBuffer, len: usize) -> Result<()> {
        let message = reply.message(unique, len);
        answered(rustix::io::write(&self.fd, message))
    }

    /// Answers without a body: success, or an errno.
    pub fn answer(&self, unique: u64, result: Result<()>) -> Result<()> {
        let error = result.err().map_or(0, |e| -e.raw_os_error());
        let header = OutHeader { len: size_of::<OutHeader>() as u32, error, unique };
        answered(rustix::io::write(&self.fd, header.as_bytes()))
    }

    /// Makes the kernel forget attributes of `node`, here and now: it waits for nothing.
    pub fn forget_attributes(&self, node: NodeId) -> Result<()> {
        Teller(self.fd.clone()).inode(node, -1)
    }

    /// The same with its cached pages: it waits for reads of those that are under way, so never while answering one, nor
    /// on a thread that others need.
    pub fn forget_pages(&self, node: NodeId) -> Result<()> {
        Teller(self.fd.clone()).inode(node, 0)
    }

    /// Asks for every request again that was read and not answered (`FUSE_NOTIFY_RESEND`).
    pub(super) fn resend(&self) -> Result<()> {
        notify(&self.fd, notify::RESEND, &[])
    }

    /// Makes `file` a backing file for passthrough; its id. All opens of an inode must use one id.
    pub fn backing_open(&self, file: BorrowedFd<'_>) -> Result<u32> {
        fuse_dev::backing_open(self.fd.as_fd(), file)
    }

    /// Drops a backing id that no open file needs any more.
    pub fn backing_close(&self, id: u32) -> Result<()> {
        fuse_dev::backing_close(self.fd.as_fd(), id)
    }
}

/// Writes notifications, which may wait for locks of the kernel.
pub(super) struct Teller(Arc<OwnedFd>);

impl Teller {
    /// An error says that the mount is gone, or that the kernel knows no such node: there is nothing to forget then.
    pub(super) fn tell(&self, note: &Note) {
        let told = match note {
            Note::Forget(parent, name) => self.name(*parent, name.to_bytes_with_nul(), 0),
            Note::LookAgain(parent, name) => {
                self.name(*parent, name.to_bytes_with_nul(), notify::EXPIRE_ONLY)
            }
            Note::Attributes(node) => self.inode(*node, -1),
            Note::Pages(node) => self.inode(*node, 0),
        };
        if let Err(errno) = told {
            tracing::debug!(%errno, ?note, "the kernel was not told");
        }
    }

    fn name(&self, parent: NodeId, name: &[u8], flags: u32) -> Result<()> {
        let body = NotifyInvalEntryOut { parent: parent.0, namelen: name.len() as u32 - 1, flags };
        notify(&self.0, notify::INVAL_ENTRY, &[body.as_bytes(), name])
    }

    /// Attributes, and from `offset` on all pages; below 0 no pages.
    fn inode(&self, node: NodeId, offset: i64) -> Result<()> {
        let body = NotifyInvalInodeOut { ino: node.0, off: offset, len: 0 };
        notify(&self.0, notify::INVAL_INODE, &[body.as_bytes()])
    }
}

fn notify(fd: &OwnedFd, code: i32, body: &[&[u8]]) -> Result<()> {
    let len = size_of::<OutHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
    let header = OutHeader { len: len as u32, error: code, unique: 0 };
    let mut parts = vec![IoSlice::new(header.as_bytes())];
    parts.extend(body.iter().map(|part| IoSlice::new(part)));
    match rustix::io::writev(fd, &parts) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// `ENOENT`: nobody waits for the answer any more, since the caller was killed or the mount aborted.
fn answered(result: Result<usize>) -> Result<()> {
    match result {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

const _: () = assert!(super::buffer::REQUEST_LEN >= abi::MIN_READ_BUFFER);

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Channel, OwnedFd) {
        let (ours, kernel) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Channel::new(ours, init::PASSTHROUGH, &HeaderRec::default(), &Notifier::default()).unwrap(), kernel)
    }

    fn sent(kernel: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let n = rustix::io::read(kernel, &mut bytes[..]).unwrap();
        bytes.truncate(n);
        bytes
    }

    #[test]
    fn an_invalidated_name_goes_out_with_its_terminator() {
        let (channel, kernel) = pair();
        channel.notes.push(Note::forget(NodeId(5), c"name"));
        let header = OutHeader { len: 37, error: notify::INVAL_ENTRY, unique: 0 };
        let body = NotifyInvalEntryOut { parent: 5, namelen: 4, flags: 0 };
        assert_eq!(sent(&kernel), [header.as_bytes(), body.as_bytes(), b"name\0"].concat());
        channel.notes.push(Note::look_again(NodeId(5), c"name"));
        let body = NotifyInvalEntryOut { flags: 1, ..body };
        assert_eq!(sent(&kernel), [header.as_bytes(), body.as_bytes(), b"name\0"].concat());
    }

    #[test]
    fn the_resend_bit_of_a_request_is_echoed() {
        let (channel, kernel) = pair();
        let unique = 4 | abi::UNIQUE_RESEND;
        channel.answer(unique, Err(Errno::INTR)).unwrap();
        assert_eq!(sent(&kernel), OutHeader { len: 16, error: -4, unique }.as_bytes());
    }

    #[test]
    fn passthrough_needs_both_sides() {
        let (channel, _kernel) = pair();
        assert!(!channel.passthrough());
        channel.agree(init::PASSTHROUGH);
        assert!(channel.passthrough());
    }
}
