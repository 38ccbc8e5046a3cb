//! Requests as typed views of the bytes that were read. Nothing here trusts a length, an offset or a terminator: what
//! does not fit its opcode is [`Malformed`].

use super::abi::{self, InHeader, op};
use crate::types::{Caller, Errno, NodeId};
use std::ffi::CStr;
use zerocopy::FromBytes;

/// Longest name that the kernel sends (`FUSE_NAME_MAX`).
const NAME_MAX: usize = 1024;

/// A request that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// Whom to answer; `None` when not even the header is there.
    pub unique: Option<u64>,
    /// With what.
    pub errno: Errno,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its name, to be echoed in the reply, bit 63 included.
    pub unique: u64,
    /// What it is about.
    pub node: NodeId,
    /// Who asks.
    pub caller: Caller,
    /// The number of the operation.
    pub opcode: u32,
    /// What is asked.
    pub op: Op<'a>,
}

/// What is asked, with names as in `linux/fuse.h`.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // the header's names and fields
pub enum Op<'a> {
    Lookup { name: &'a CStr },
    Forget { nlookup: u64 },
    BatchForget { items: &'a [u8] },
    Getattr(abi::GetattrIn),
    Setattr(abi::SetattrIn),
    Readlink,
    Symlink { name: &'a CStr, target: &'a CStr },
    Mknod { arg: abi::MknodIn, name: &'a CStr },
    Mkdir { arg: abi::MkdirIn, name: &'a CStr },
    Unlink { name: &'a CStr },
    Rmdir { name: &'a CStr },
    Rename { new_parent: NodeId, flags: u32, old: &'a CStr, new: &'a CStr },
    Link { node: NodeId, name: &'a CStr },
    Open(abi::OpenIn),
    Read(abi::ReadIn),
    Write { arg: abi::WriteIn, data: &'a [u8] },
    Statfs,
    Release(abi::ReleaseIn),
    Fsync(abi::FsyncIn),
    Setxattr { flags: u32, kill_sgid: bool, name: &'a CStr, value: &'a [u8] },
    Getxattr { size: u32, name: &'a CStr },
    Listxattr { size: u32 },
    Removexattr { name: &'a CStr },
    Flush(abi::FlushIn),
    Init { arg: abi::InitIn, flags2: u32 },
    Opendir(abi::OpenIn),
    Readdir(abi::ReadIn),
    Readdirplus(abi::ReadIn),
    Releasedir(abi::ReleaseIn),
    Fsyncdir(abi::FsyncIn),
    Getlk(abi::LkIn),
    Setlk(abi::LkIn),
    Setlkw(abi::LkIn),
    Access(abi::AccessIn),
    Create { arg: abi::CreateIn, name: &'a CStr },
    Interrupt { unique: u64 },
    Destroy,
    Ioctl { arg: abi::IoctlIn, input: &'a [u8] },
    Fallocate(abi::FallocateIn),
    Lseek(abi::LseekIn),
    CopyFileRange { arg: abi::CopyFileRangeIn, wide: bool },
    Syncfs,
    Tmpfile(abi::CreateIn),
    Statx(abi::StatxIn),
    Unknown,
}

impl<'a> Request<'a> {
    /// Reads a request. `setxattr_ext`: `SETXATTR` has its longer form, as agreed at `INIT`.
    pub fn parse(bytes: &'a [u8], setxattr_ext: bool) -> Result<Request<'a>, Malformed> {
        let (header, body) =
            InHeader::read_from_prefix(bytes).map_err(|_| Malformed { unique: None, errno: Errno::IO })?;
        let malformed = Malformed { unique: Some(header.unique), errno: Errno::INVAL };
        if header.len as usize != bytes.len() {
            return Err(Malformed { errno: Errno::IO, ..malformed });
        }
        let extensions = usize::from(header.total_extlen) * 8;
        let end = body.len().checked_sub(extensions).ok_or(malformed)?;
        let mut body = Body(&body[..end]);
        let op = body.op(header.opcode, setxattr_ext).ok_or(malformed)?;
        Ok(Request {
            unique: header.unique,
            node: NodeId(header.nodeid),
            caller: Caller { uid: header.uid, gid: header.gid, pid: header.pid },
            opcode: header.opcode,
            op,
        })
    }

    /// Was it read before by somebody who did not answer?
    pub fn is_resent(&self) -> bool {
        self.unique & abi::UNIQUE_RESEND != 0
    }
}

/// What is left of a request's body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// A NUL-terminated string. The kernel sends at least one byte before the NUL for every name.
    fn string(&mut self) -> Option<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.0).ok()?;
        self.0 = &self.0[string.count_bytes() + 1..];
        Some(string)
    }

    /// A name of a directory entry: a single component. The kernel resolves `.` and `..` itself (it asks for them only with
    /// `EXPORT_SUPPORT`), and `..` of the root would lead out of the backing directory.
    fn name(&mut self) -> Option<&'a CStr> {
        let name = self.string()?;
        let bytes = name.to_bytes();
        let special = matches!(bytes, b"" | b"." | b"..");
        (!special && bytes.len() <= NAME_MAX && !bytes.contains(&b'/')).then_some(name)
    }

    fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len as usize)?;
        self.0 = rest;
        Some(bytes)
    }

    fn op(&mut self, opcode: u32, setxattr_ext: bool) -> Option<Op<'a>> {
        Some(match opcode {
            op::LOOKUP => Op::Lookup { name: self.name()? },
            op::FORGET => Op::Forget { nlookup: self.take::<abi::ForgetIn>()?.nlookup },
            op::BATCH_FORGET => {
                let count = self.take::<abi::BatchForgetIn>()?.count;
                Op::BatchForget { items: self.bytes(count.checked_mul(size_of::<abi::ForgetOne>() as u32)?)? }
            }
            op::GETATTR => Op::Getattr(self.take()?),
            op::SETATTR => Op::Setattr(self.take()?),
            op::READLINK => Op::Readlink,
            op::SYMLINK => Op::Symlink { name: self.name()?, target: self.string()? },
            op::MKNOD => Op::Mknod { arg: self.take()?, name: self.name()? },
            op::MKDIR => Op::Mkdir { arg: self.take()?, name: self.name()? },
            op::UNLINK => Op::Unlink { name: self.name()? },
            op::RMDIR => Op::Rmdir { name: self.name()? },
            op::RENAME => {
                let new_parent = NodeId(self.take::<abi::RenameIn>()?.newdir);
                Op::Rename { new_parent, flags: 0, old: self.name()?, new: self.name()? }
            }
            op::RENAME2 => {
                let arg: abi::Rename2In = self.take()?;
                let new_parent = NodeId(arg.newdir);
                Op::Rename { new_parent, flags: arg.flags, old: self.name()?, new: self.name()? }
            }
            op::LINK => Op::Link { node: NodeId(self.take::<abi::LinkIn>()?.oldnodeid), name: self.name()? },
            op::CREATE => Op::Create { arg: self.take()?, name: self.name()? },
            // A name follows ("/"), which says nothing.
            op::TMPFILE => Op::Tmpfile(self.take()?),
            op::SETXATTR => self.setxattr(setxattr_ext)?,
            op::GETXATTR => Op::Getxattr { size: self.take::<abi::GetxattrIn>()?.size, name: self.string()? },
            op::LISTXATTR => Op::Listxattr { size: self.take::<abi::GetxattrIn>()?.size },
            op::REMOVEXATTR => Op::Removexattr { name: self.string()? },
            op::WRITE => {
                let arg: abi::WriteIn = self.take()?;
                Op::Write { arg, data: self.bytes(arg.size)? }
            }
            op::IOCTL => {
                let arg: abi::IoctlIn = self.take()?;
                Op::Ioctl { arg, input: self.bytes(arg.in_size)? }
            }
            op::INIT => self.init()?,
            _ => return self.plain(opcode),
        })
    }

    /// Operations that are one struct or nothing.
    fn plain(&mut self, opcode: u32) -> Option<Op<'a>> {
        Some(match opcode {
            op::OPEN => Op::Open(self.take()?),
            op::READ => Op::Read(self.take()?),
            op::STATFS => Op::Statfs,
            op::RELEASE => Op::Release(self.take()?),
            op::FSYNC => Op::Fsync(self.take()?),
            op::FLUSH => Op::Flush(self.take()?),
            op::OPENDIR => Op::Opendir(self.take()?),
            op::READDIR => Op::Readdir(self.take()?),
            op::READDIRPLUS => Op::Readdirplus(self.take()?),
            op::RELEASEDIR => Op::Releasedir(self.take()?),
            op::FSYNCDIR => Op::Fsyncdir(self.take()?),
            op::GETLK => Op::Getlk(self.take()?),
            op::SETLK => Op::Setlk(self.take()?),
            op::SETLKW => Op::Setlkw(self.take()?),
            op::ACCESS => Op::Access(self.take()?),
            op::INTERRUPT => Op::Interrupt { unique: self.take::<abi::InterruptIn>()?.unique },
            op::DESTROY => Op::Destroy,
            op::FALLOCATE => Op::Fallocate(self.take()?),
            op::LSEEK => Op::Lseek(self.take()?),
            op::COPY_FILE_RANGE => Op::CopyFileRange { arg: self.take()?, wide: false },
            op::COPY_FILE_RANGE_64 => Op::CopyFileRange { arg: self.take()?, wide: true },
            op::SYNCFS => Op::Syncfs,
            op::STATX => Op::Statx(self.take()?),
            _ => Op::Unknown,
        })
    }

    fn setxattr(&mut self, extended: bool) -> Option<Op<'a>> {
        let arg: abi::SetxattrIn = self.take()?;
        let more = if extended { self.take()? } else { abi::SetxattrInExt::default() };
        let kill_sgid = more.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
        Some(Op::Setxattr { flags: arg.flags, kill_sgid, name: self.string()?, value: self.bytes(arg.size)? })
    }

    fn init(&mut self) -> Option<Op<'a>> {
        let arg: abi::InitIn = self.take()?;
        let extended = u64::from(arg.flags) & abi::init::INIT_EXT != 0;
        let flags2 = if extended { self.take::<abi::InitInExt>()?.flags2 } else { 0 };
        Some(Op::Init { arg, flags2 })
    }
}

/// The items of a `BATCH_FORGET`.
pub fn forgets(items: &[u8]) -> impl Iterator<Item = (NodeId, u64)> + '_ {
    items
        .chunks_exact(size_of::<abi::ForgetOne>())
        .filter_map(|chunk| abi::ForgetOne::read_from_bytes(chunk).ok())
        .map(|one| (NodeId(one.nodeid), one.nlookup))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    pub(crate) fn request(opcode: u32, body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, unique: 7, nodeid: 1, uid: 5, ..InHeader::default() };
        [header.as_bytes(), &body].concat()
    }

    fn errno(bytes: &[u8]) -> Option<Errno> {
        Request::parse(bytes, false).err().map(|e| e.errno)
    }

    #[test]
    fn a_rename_has_two_names() {
        let arg = abi::Rename2In { newdir: 9, flags: 1, padding: 0 };
        let bytes = request(op::RENAME2, &[arg.as_bytes(), b"old\0new\0"]);
        let Op::Rename { new_parent, flags, old, new } = Request::parse(&bytes, false).unwrap().op else {
            panic!("not a rename");
        };
        assert_eq!((new_parent, flags, old, new), (NodeId(9), 1, c"old", c"new"));
        assert_eq!(errno(&request(op::RENAME2, &[arg.as_bytes(), b"old\0new"])), Some(Errno::INVAL));
        assert_eq!(errno(&request(op::RENAME2, &[arg.as_bytes(), b"old\0"])), Some(Errno::INVAL));
    }

    #[test]
    fn names_are_single_components() {
        for name in [&b"\0"[..], b"a/b\0", b".\0", b"..\0", b"no terminator", b""] {
            assert_eq!(errno(&request(op::LOOKUP, &[name])), Some(Errno::INVAL), "{name:?}");
        }
        assert_eq!(errno(&request(op::LOOKUP, &[b"a\0"])), None);
    }

    #[test]
    fn lengths_inside_a_request_are_checked() {
        let write = abi::WriteIn { size: 5, ..abi::WriteIn::default() };
        assert_eq!(errno(&request(op::WRITE, &[write.as_bytes(), b"four"])), Some(Errno::INVAL));
        let forget = abi::BatchForgetIn { count: u32::MAX, dummy: 0 };
        assert_eq!(errno(&request(op::BATCH_FORGET, &[forget.as_bytes(), &[0; 64]])), Some(Errno::INVAL));
        let ioctl = abi::IoctlIn { in_size: 1, ..abi::IoctlIn::default() };
        assert_eq!(errno(&request(op::IOCTL, &[ioctl.as_bytes()])), Some(Errno::INVAL));
        let set = abi::SetxattrIn { size: 9, flags: 0 };
        assert_eq!(errno(&request(op::SETXATTR, &[set.as_bytes(), b"user.a\0value"])), Some(Errno::INVAL));
    }

    #[test]
    fn a_header_must_agree_with_what_was_read() {
        let bytes = request(op::STATFS, &[]);
        assert_eq!(
            Request::parse(&bytes[..39], false).unwrap_err(),
            Malformed { unique: None, errno: Errno::IO }
        );
        let longer = [&bytes[..], b"x"].concat();
        let refused = Request::parse(&longer, false).unwrap_err();
        assert_eq!(refused, Malformed { unique: Some(7), errno: Errno::IO });
        let mut header = InHeader::read_from_bytes(&bytes).unwrap();
        header.total_extlen = 1;
        assert_eq!(errno(header.as_bytes()), Some(Errno::INVAL));
    }

    #[test]
    fn a_setxattr_has_the_agreed_form() {
        let arg = abi::SetxattrIn { size: 1, flags: 0 };
        let more = abi::SetxattrInExt { setxattr_flags: abi::SETXATTR_ACL_KILL_SGID, padding: 0 };
        let bytes = request(op::SETXATTR, &[arg.as_bytes(), more.as_bytes(), b"user.a\0v"]);
        let parsed = Request::parse(&bytes, true).unwrap();
        let Op::Setxattr { kill_sgid, name, value, .. } = parsed.op else { panic!("not a setxattr") };
        assert_eq!((kill_sgid, name, value), (true, c"user.a", &b"v"[..]));
    }

    #[test]
    fn an_unknown_opcode_is_no_error_of_the_parser() {
        assert!(matches!(Request::parse(&request(4711, &[b"any"]), false).unwrap().op, Op::Unknown));
    }
}
