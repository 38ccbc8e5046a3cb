//! Unix sockets of type `SOCK_SEQPACKET`: one message a call, with its fds.

use super::message::{MAX_FDS, MAX_MESSAGE};
use crate::types::{Errno, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its fds, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// It was longer than [`MAX_MESSAGE`]: `bytes` is not all of it.
    pub cut: bool,
}

/// One end of a connection. The fd is non-blocking.
#[derive(Debug)]
pub struct Seqpacket(OwnedFd);

impl AsRawFd for Seqpacket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Seqpacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

impl Seqpacket {
    /// Connects to a listener.
    pub fn connect(path: &Path) -> Result<Seqpacket> {
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(Seqpacket(fd))
    }

    /// Two ends of one connection.
    pub fn pair() -> Result<(Seqpacket, Seqpacket)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        Ok((Seqpacket(a), Seqpacket(b)))
    }

    /// The user at the other end, when it connected.
    pub fn peer_uid(&self) -> Result<u32> {
        Ok(rustix::net::sockopt::socket_peercred(&self.0)?.uid.as_raw())
    }

    /// Sends a message; `EAGAIN` when there is no room.
    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::TOOBIG);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)
        })?;
        Ok(())
    }

    /// Receives a message; `None` when the other end is closed, `EAGAIN` when there is none.
    pub fn try_recv(&self) -> Result<Option<Message>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut receive =
            || rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        let received = loop {
            match receive() {
                // The kernel says once that the other end died with messages of ours unread; what it sent is still here.
                Err(Errno::INTR | Errno::CONNRESET) => (),
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let cut = received.flags.contains(ReturnFlags::TRUNC);
        if received.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(received.bytes);
        bytes.shrink_to_fit();
        Ok(Some(Message { bytes, fds, cut }))
    }

    /// As [`try_send`](Self::try_send), and waits for room; `ETIMEDOUT` after `limit`.
    pub fn send_within(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], limit: Duration) -> Result<()> {
        self.within(limit, PollFlags::OUT, || self.try_send(bytes, fds))
    }

    /// As [`try_recv`](Self::try_recv), and waits for a message; `ETIMEDOUT` after `limit`.
    pub fn recv_within(&self, limit: Duration) -> Result<Option<Message>> {
        self.within(limit, PollFlags::IN, || self.try_recv())
    }

    fn within<T>(
        &self,
        limit: Duration,
        ready: PollFlags,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            match attempt() {
                Err(Errno::AGAIN) => (),
                other => return other,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::TIMEDOUT);
            }
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            match rustix::event::poll(&mut [PollFd::new(&self.0, ready)], Some(&left)) {
                Ok(_) | Err(Errno::INTR) => (),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Ends the connection for both sides, also for others that hold this fd.
    pub fn shutdown(&self) {
        // It fails only when the other end is gone, which is what we want.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// A connection whose calls wait in the runtime.
#[derive(Debug)]
pub struct Connection(AsyncFd<Arc<Seqpacket>>);

impl Connection {
    /// Registers the socket in the runtime of the caller.
    pub fn new(socket: Arc<Seqpacket>) -> Result<Connection> {
        // SAFETY: the `Arc` keeps the socket open while it is registered, and `as_raw_fd` always names that one.
        let registered = unsafe { AsyncFd::register(socket) };
        Ok(Connection(registered.map_err(|e| errno(e.into()))?))
    }

    /// The socket.
    pub fn socket(&self) -> &Arc<Seqpacket> {
        self.0.get_ref()
    }

    /// Sends a message.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.0.async_io(Interest::WRITABLE, |s| Ok(s.try_send(bytes, fds)?)).await.map_err(errno)
    }

    /// The next message; `None` when the other end is closed.
    pub async fn recv(&self) -> Result<Option<Message>> {
        self.0.async_io(Interest::READABLE, |s| Ok(s.try_recv()?)).await.map_err(errno)
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum BindError {
    #[error("another process listens at {0}: stop it, or give another --socket")]
    InUse(PathBuf),
    #[error("{0} exists and is no socket: remove it, or give another --socket")]
    NotASocket(PathBuf),
    #[error("cannot make the socket {path}: {errno}")]
    Failed { path: PathBuf, errno: Errno },
}

/// A listening socket, mode 0600. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A socket file that nobody listens at any more is replaced.
    pub fn bind(path: &Path) -> Result<Listener, BindError> {
        remove_stale(path)?;
        let failed = |errno| BindError::Failed { path: path.to_owned(), errno };
        let listen = || {
            let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
            rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
            // Nobody can connect before `listen`, so nobody gets in with the mode that the umask gave.
            rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
            rustix::net::listen(&fd, 64)?;
            // SAFETY: the `OwnedFd` is open until it is dropped, after it was taken out of the runtime.
            let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
            registered.map_err(|e| errno(e.into()))
        };
        Ok(Listener { socket: listen().map_err(failed)?, path: path.to_owned() })
    }

    /// The next connection.
    pub async fn accept(&self) -> Result<Seqpacket> {
        let accept = |fd: &OwnedFd| Ok(rustix::net::accept_with(fd, FLAGS)?);
        self.socket.async_io(Interest::READABLE, accept).await.map(Seqpacket).map_err(errno)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(there) if !there.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => (),
    }
    match Seqpacket::connect(path) {
        Err(Errno::CONNREFUSED) => {
            rustix::fs::unlink(path).map_err(|errno| BindError::Failed { path: path.to_owned(), errno })
        }
        Err(Errno::NOENT) => Ok(()),
        _ => Err(BindError::InUse(path.to_owned())),
    }
}
