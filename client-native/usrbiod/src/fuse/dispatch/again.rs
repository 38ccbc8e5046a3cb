//! Requests that a predecessor began or did, and whose reply the kernel has not got.

use super::super::abi::{self, OpenOut, op};
use super::super::replay::recorded;
use super::super::reply;
use super::super::request::Op;
use super::{Answer, Call, run};
use crate::state::records::ReplyRec;
use crate::types::{Entry, Errno, NodeId, Result};
use crate::virt::Virt;
use rustix::fs::{AtFlags, StatxFlags};
use std::ffi::CStr;
use usrbio_wire::ioctl;

/// The answer to a request that was done, from what was noted of it.
pub(super) fn answer(call: &mut Call<'_, '_>, record: &ReplyRec) -> Result<Answer> {
    let outcome = recorded(record)?;
    let out = OpenOut {
        fh: outcome.fh,
        open_flags: outcome.opened as u32,
        backing_id: (outcome.opened >> 32) as i32,
    };
    match call.request.opcode {
        op::LOOKUP | op::SYMLINK | op::MKNOD | op::MKDIR | op::LINK => {
            entry(call, NodeId(outcome.node)).map(Answer::Entry)
        }
        op::CREATE | op::TMPFILE => Ok(Answer::Created(entry(call, NodeId(outcome.node))?, out)),
        op::OPEN | op::OPENDIR => Ok(Answer::Opened(out)),
        op::WRITE => Ok(Answer::Written(outcome.opened as u32)),
        op::IOCTL => call.put(&abi::IoctlOut::default()),
        _ => Ok(Answer::EMPTY),
    }
}

/// The entry of a node on which the lookup was taken before.
fn entry(call: &Call<'_, '_>, node: NodeId) -> Result<Entry> {
    let attr = if node.is_virtual() {
        call.session.virt.getattr(node, &call.request.caller)?
    } else {
        call.session.fs.getattr(node)?
    };
    Ok(Entry { node, attr })
}

/// Inode number of what a rename moves; 0 for other operations, and when there is no such name.
pub(super) fn moved(call: &Call<'_, '_>) -> u64 {
    match call.request.op {
        Op::Rename { old, .. } if !call.request.node.is_virtual() => {
            found(call, call.request.node, old).map_or(0, |f| f.ino)
        }
        _ => 0,
    }
}

/// Does a request that was begun, unless its effects are there already.
pub(super) fn resume(call: &mut Call<'_, '_>, record: &ReplyRec) -> Result<Answer> {
    if let Op::Rename { new_parent, flags, old, new } = call.request.op
        && was_moved(call, record, (new_parent, new), old, flags)
    {
        return Ok(Answer::EMPTY);
    }
    if let Op::Write { arg, data } = call.request.op {
        return call.append_again(&arg, data, record.ino);
    }
    match run(call) {
        Err(Errno::EXIST) => made_before(call, record),
        Err(e @ (Errno::NOENT | Errno::NODATA)) => removed_before(call, e),
        other => other,
    }
}

/// Was the rename done? Its object is where it should go, and no more where it came from (or exchanged with another).
fn was_moved(call: &Call<'_, '_>, record: &ReplyRec, to: (NodeId, &CStr), old: &CStr, flags: u32) -> bool {
    let from = call.request.node;
    if record.ino == 0 || from.is_virtual() {
        return false;
    }
    let exchange = flags & libc::RENAME_EXCHANGE != 0;
    let gone = matches!(found(call, from, old), Err(Errno::NOENT));
    if to.0.is_virtual() {
        // Into `rm-rf`: the tree is removed, or being removed.
        return gone;
    }
    (gone || exchange) && found(call, to.0, to.1).is_ok_and(|f| f.ino == record.ino)
}

/// `EEXIST`: is it there because the predecessor made it?
fn made_before(call: &mut Call<'_, '_>, record: &ReplyRec) -> Result<Answer> {
    let (parent, caller) = (call.request.node, call.request.caller);
    match call.request.op {
        Op::Symlink { name, target } if Virt::owns(parent, name) => {
            let entry = call.session.virt.lookup(parent, name, &caller)?;
            let same = call.session.virt.readlink(entry.node, &caller)? == target.to_bytes();
            if same { Ok(Answer::Entry(entry)) } else { Err(Errno::EXIST) }
        }
        Op::Symlink { name, .. } | Op::Mkdir { name, .. } | Op::Mknod { name, .. } => {
            is_fresh(call, record, name)?;
            call.session.fs.lookup(parent, name).map(Answer::Entry)
        }
        Op::Create { arg, name } => {
            is_fresh(call, record, name)?;
            open_made(call, arg.flags, name)
        }
        Op::Link { node, name } => {
            let (_, ino) = call.session.fs.backing_key(node)?;
            if found(call, parent, name)?.ino != ino {
                return Err(Errno::EXIST);
            }
            call.session.fs.lookup(parent, name).map(Answer::Entry)
        }
        Op::Setxattr { name, value, .. } => {
            let same = call.session.fs.getxattr(parent, name)? == value;
            if same { Ok(Answer::EMPTY) } else { Err(Errno::EXIST) }
        }
        Op::Ioctl { arg, .. } if arg.cmd == ioctl::HARDLINK => call.put(&abi::IoctlOut::default()),
        Op::Ioctl { arg, input } if arg.cmd == ioctl::REGISTER => {
            let before = call.session.virt.was_registered(input, &caller);
            if before { call.put(&abi::IoctlOut::default()) } else { Err(Errno::EXIST) }
        }
        _ => Err(Errno::EXIST),
    }
}

/// Opens what the predecessor's `CREATE` made: nobody else has seen it, so that its permissions do not matter.
fn open_made(call: &Call<'_, '_>, flags: u32, name: &CStr) -> Result<Answer> {
    let fs = &call.session.fs;
    let entry = fs.lookup(call.request.node, name)?;
    let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;
    match fs.open(entry.node, flags, false, &call.request.caller, call.tgid()) {
        Ok(opened) => Ok(Answer::Created(entry, reply::opened(&opened))),
        Err(error) => {
            fs.forget(entry.node, 1);
            Err(error)
        }
    }
}

/// `ENOENT` or `ENODATA`: the predecessor removed it, since this was begun only after the kernel had seen it.
fn removed_before(call: &mut Call<'_, '_>, errno: Errno) -> Result<Answer> {
    match (call.request.op, errno) {
        (Op::Unlink { .. } | Op::Rmdir { .. }, Errno::NOENT) => Ok(Answer::EMPTY),
        (Op::Symlink { target, .. }, Errno::NOENT)
            if call.request.node.is_virtual() || call.session.virt.is_move_order(target) =>
        {
            Ok(Answer::Entry(call.session.virt.carried_out(target, &call.request.caller)))
        }
        (Op::Removexattr { .. }, Errno::NODATA) => Ok(Answer::EMPTY),
        (Op::Ioctl { arg, .. }, Errno::NOENT)
            if matches!(arg.cmd, ioctl::RECURSIVE_RM | ioctl::REMOVE | ioctl::MOVE | ioctl::UNREGISTER) =>
        {
            call.put(&abi::IoctlOut::default())
        }
        _ => Err(errno),
    }
}

/// `EEXIST`, unless `name` was made for this caller after the request was begun.
fn is_fresh(call: &Call<'_, '_>, record: &ReplyRec, name: &CStr) -> Result<()> {
    let there = found(call, call.request.node, name)?;
    let fresh = there.made >= record.begun && there.uid == call.request.caller.uid;
    if fresh { Ok(()) } else { Err(Errno::EXIST) }
}

/// What a name of the backing directory stands for.
struct Found {
    ino: u64,
    uid: u32,
    /// When it was made, in ns; without a time of birth, when it was changed last.
    made: u64,
}

fn found(call: &Call<'_, '_>, parent: NodeId, name: &CStr) -> Result<Found> {
    let dir = call.session.fs.path_fd(parent)?;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(&*dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC, mask)?;
    let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    let made = if has_birth { stat.stx_btime } else { stat.stx_ctime };
    let made = made.tv_sec as u64 * 1_000_000_000 + u64::from(made.tv_nsec);
    Ok(Found { ino: stat.stx_ino, uid: stat.stx_uid, made })
}
