//! From a request to the call that serves it, and from what that returns to the reply.

mod again;
mod dirs;
mod files;
mod inodes;
mod locks;
mod names;

use super::abi::OpenOut;
use super::replay::{self, Earlier, Journal, Outcome, Slot};
use super::reply;
use super::request::{Op, Request, forgets};
use super::{abi, init};
use crate::clients;
use crate::fs::locks::Answer as LockAnswer;
use crate::session::Session;
use crate::types::{Entry, Errno, NodeId, Result};

/// A request and what is needed to serve it.
pub(super) struct Call<'a, 'j> {
    pub session: &'a Session,
    pub request: &'a Request<'a>,
    /// Where the reply's body is made.
    pub body: &'a mut [u8],
    pub journal: &'a Journal,
    pub slot: &'a mut Slot<'j>,
    /// Takes the answers of requests that waited for a lock.
    pub answer: &'a dyn Fn(Vec<LockAnswer>),
}

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The first bytes of the body.
    Reply(usize),
    /// Nothing: the kernel wants no answer, or gets it later.
    Silent,
}

/// What an operation returns.
enum Answer {
    /// Success, with this many bytes in the body.
    Body(usize),
    Entry(Entry),
    Opened(OpenOut),
    Created(Entry, OpenOut),
    /// Bytes.
    Written(u32),
    Silent,
}

impl Answer {
    const EMPTY: Answer = Answer::Body(0);

    fn outcome(&self) -> Outcome {
        let opened = |node: u64, out: &OpenOut| Outcome {
            node,
            fh: out.fh,
            opened: u64::from(out.open_flags) | u64::from(out.backing_id as u32) << 32,
        };
        match self {
            Answer::Entry(entry) => Outcome { node: entry.node.0, ..Outcome::default() },
            Answer::Opened(out) => opened(0, out),
            Answer::Created(entry, out) => opened(entry.node.0, out),
            Answer::Written(bytes) => Outcome { opened: u64::from(*bytes), ..Outcome::default() },
            Answer::Body(_) | Answer::Silent => Outcome::default(),
        }
    }

    fn encode(&self, body: &mut [u8]) -> Result<Done> {
        Ok(Done::Reply(match self {
            Answer::Body(len) => *len,
            Answer::Entry(entry) => reply::put(body, &reply::entry(entry))?,
            Answer::Opened(out) => reply::put(body, out)?,
            Answer::Written(bytes) => reply::put(body, &abi::WriteOut { size: *bytes, padding: 0 })?,
            Answer::Created(entry, out) => {
                let at = reply::put(body, &reply::entry(entry))?;
                at + reply::put(&mut body[at..], out)?
            }
            Answer::Silent => return Ok(Done::Silent),
        }))
    }
}

/// Serves a request.
pub(super) fn handle(call: &mut Call<'_, '_>) -> Result<Done> {
    let request = call.request;
    let result = match call.journal.earlier(request) {
        Some(Earlier::Done(record)) => return again::answer(call, &record)?.encode(call.body),
        Some(Earlier::Begun(record)) => again::resume(call, &record),
        None => {
            if replay::is_journaled(&request.op) {
                let moved = again::moved(call);
                call.slot.begin(request, moved);
            }
            run(call)
        }
    };
    let named = matches!(request.op, Op::Lookup { .. }) && result.is_ok();
    if replay::is_journaled(&request.op) || call.slot.has_begun() || named {
        call.slot.done(request, result.as_ref().map(Answer::outcome).map_err(|e| *e));
    }
    result?.encode(call.body)
}

fn run(call: &mut Call<'_, '_>) -> Result<Answer> {
    let request = call.request;
    if is_change(&request.op) {
        if !request.node.is_virtual() && call.read_only() {
            return Err(Errno::ROFS);
        }
        call.session.fs.settled();
    }
    match request.op {
        Op::Lookup { name } => call.lookup(name),
        Op::Forget { nlookup } => call.forget(request.node, nlookup),
        Op::BatchForget { items } => {
            forgets(items).try_for_each(|(node, nlookup)| call.forget(node, nlookup).map(drop))?;
            Ok(Answer::Silent)
        }
        Op::Symlink { name, target } => call.symlink(name, target),
        Op::Mknod { arg, name } => call.mknod(&arg, name),
        Op::Mkdir { arg, name } => call.mkdir(&arg, name),
        Op::Unlink { name } => call.unlink(name),
        Op::Rmdir { name } => call.rmdir(name),
        Op::Rename { new_parent, flags, old, new } => call.rename(new_parent, flags, old, new),
        Op::Link { node, name } => call.link(node, name),
        Op::Create { arg, name } => call.create(&arg, name),
        Op::Tmpfile(arg) => call.tmpfile(&arg),

        Op::Getattr(_) => call.getattr(),
        Op::Setattr(arg) => call.setattr(&arg),
        Op::Statx(arg) => call.statx(&arg),
        Op::Readlink => call.readlink(),
        Op::Setxattr { flags, kill_sgid, name, value } => call.setxattr(name, value, flags, kill_sgid),
        Op::Getxattr { size, name } => call.getxattr(name, size),
        Op::Listxattr { size } => call.listxattr(size),
        Op::Removexattr { name } => call.removexattr(name),
        Op::Statfs => call.statfs(),
        Op::Syncfs => call.session.fs.syncfs(request.node).map(|()| Answer::EMPTY),
        // The kernel checks access itself (`default_permissions`) and never asks.
        Op::Access(_) => Ok(Answer::EMPTY),

        Op::Open(arg) => call.open(&arg),
        Op::Read(arg) => call.read(&arg),
        Op::Write { arg, data } => call.write(&arg, data),
        Op::Flush(arg) => call.flush(&arg),
        Op::Release(arg) => call.release(&arg),
        Op::Fsync(arg) => call.fsync(&arg),
        Op::Fallocate(arg) => call.fallocate(&arg),
        Op::Lseek(arg) => call.lseek(&arg),
        Op::CopyFileRange { arg, wide } => call.copy_file_range(&arg, wide),
        Op::Ioctl { arg, input } => call.ioctl(&arg, input),

        Op::Opendir(_) => call.opendir(),
        Op::Readdir(arg) => call.readdir(&arg, false),
        Op::Readdirplus(arg) => call.readdir(&arg, true),
        Op::Releasedir(arg) => call.releasedir(&arg),
        Op::Fsyncdir(arg) => call.fsyncdir(&arg),

        Op::Getlk(arg) => call.getlk(&arg),
        Op::Setlk(arg) => call.setlk(&arg, false),
        Op::Setlkw(arg) => call.setlk(&arg, true),
        Op::Interrupt { unique } => call.interrupt(unique),

        Op::Init { arg, flags2 } => call.init(&arg, flags2),
        Op::Destroy => Ok(Answer::EMPTY),
        Op::Unknown => Err(Errno::NOSYS),
    }
}

/// Does it change something, other than by a name of `3fs-virt`?
fn is_change(op: &Op<'_>) -> bool {
    match op {
        Op::Setattr(_)
        | Op::Symlink { .. }
        | Op::Mknod { .. }
        | Op::Mkdir { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::Link { .. }
        | Op::Create { .. }
        | Op::Tmpfile(_)
        | Op::Setxattr { .. }
        | Op::Removexattr { .. }
        | Op::Write { .. }
        | Op::Fallocate(_)
        | Op::CopyFileRange { .. } => true,
        Op::Open(arg) => {
            let flags = arg.flags as i32;
            flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
        }
        _ => false,
    }
}

impl Call<'_, '_> {
    fn read_only(&self) -> bool {
        self.session.config.read_only || self.session.conf.read_only(self.request.caller.uid)
    }

    /// Refuses what exists only for ordinary nodes.
    fn ordinary(&self) -> Result<NodeId> {
        if self.request.node.is_virtual() { Err(Errno::PERM) } else { Ok(self.request.node) }
    }

    /// The caller's process; 0 when it cannot be seen.
    fn tgid(&self) -> u32 {
        clients::tgid_of(&self.request.caller)
    }

    fn put<T: zerocopy::IntoBytes + zerocopy::Immutable>(&mut self, value: &T) -> Result<Answer> {
        reply::put(self.body, value).map(Answer::Body)
    }

    fn init(&mut self, arg: &abi::InitIn, flags2: u32) -> Result<Answer> {
        let channel = &self.session.channel;
        let out = init::answer(arg, flags2, channel.asked())?;
        if arg.major == abi::KERNEL_VERSION {
            let mut header = self.session.state.header();
            header.init_done = 1;
            header.fuse_minor = out.minor;
            header.max_write = out.max_write;
            header.fuse_flags = init::flags(&out);
            self.session.state.set_header(&header);
            channel.agree(header.fuse_flags);
            tracing::info!(
                session = self.session.config.name,
                version = format!("{}.{}", out.major, out.minor),
                passthrough = channel.passthrough(),
                "mount is up"
            );
        }
        self.put(&out)
    }
}
