//! Iovs: data buffers in shared memory that the daemon reads and writes directly.

use crate::error::Error;
use crate::fork::Generation;
use crate::mount::Mount;
use crate::shm::{self, Mapping, ShmFile};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use usrbio_wire::IovName;
use uuid::Uuid;

/// What the name of a shared-memory file starts with. The daemon cleans such files up after dead processes.
const SHM_PREFIX: &str = "hf3fs-iov-";

/// A registration below `3fs-virt/iovs` that this process made. Dropping it ends it; in a forked child it stays,
/// because it is the parent's.
#[derive(Debug)]
pub struct Registration {
    mount: Mount,
    name: OsString,
    made_in: Generation,
}

impl Registration {
    /// Registers `shm`, a file in `/dev/shm`, as `name`, of the form of 3FS. The daemon has opened the file when this
    /// returns. On a mount that is read-only, where no link can be made, memory and rings for reads are registered by an
    /// ioctl instead.
    pub fn new(mount: &Mount, name: &str, shm: &Path) -> Result<Registration, Error> {
        let link = mount.iovs().join(name);
        let made = match rustix::fs::symlink(shm, &link) {
            // A daemon that does not know the ioctl answers EINVAL or ENOTTY.
            Err(Errno::ROFS) => mount.register(OsStr::new(name), shm).map_err(|errno| match errno {
                Errno::INVAL | Errno::NOTTY => Errno::ROFS,
                errno => errno,
            }),
            made => made,
        };
        match made {
            Ok(()) => {
                let (mount, made_in) = (mount.clone(), Generation::current());
                Ok(Registration { mount, name: name.into(), made_in })
            }
            Err(Errno::ACCESS) => Err(Error::ShmNotShared(shm.to_owned())),
            Err(errno) => match refusal(IovName::parse(name).is_ok_and(|name| name.ring.is_some()), errno) {
                Some((what, why)) => {
                    Err(Error::Refused { what, mount: mount.point().to_owned(), errno, why })
                }
                None => Err(Error::os("register shared memory as", link)(errno)),
            },
        }
    }

    /// The link that shows it.
    pub fn link(&self) -> PathBuf {
        self.mount.iovs().join(&self.name)
    }

    /// Does the daemon still know it? Anything but its "no" or its absence counts as "yes".
    pub(crate) fn check(&self) -> Result<(), Error> {
        let link = self.link();
        match rustix::fs::lstat(&link) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTCONN | Errno::CONNABORTED | Errno::STALE) => {
                Err(Error::Unserved(link))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.made_in.is_current() {
            return;
        }
        let ended = match rustix::fs::unlink(self.link()) {
            Err(Errno::ROFS) => self.mount.unregister(&self.name),
            ended => ended,
        };
        if let Err(errno) = ended {
            tracing::info!("cannot unregister {}: {errno}", self.link().display());
        }
    }
}

/// What an answer of the daemon means that names a limit. The numbers are those of usrbiod, unless it was given others.
fn refusal(ring: bool, errno: Errno) -> Option<(&'static str, &'static str)> {
    let what = if ring { "ring" } else { "Iov" };
    let why = match errno {
        Errno::MFILE if ring => {
            "the processes of this pod have 1024 rings of it, or 4096 rings and Iovs, and may not have more. This limit is the \
             volume's, not that of open files: close rings that are idle, or let threads share one"
        }
        Errno::MFILE => {
            "the processes of this pod have 4096 rings and Iovs of it and may not have more. This limit is the volume's, not \
             that of open files: close some, or use parts of one larger Iov"
        }
        Errno::TOOBIG => "a ring has at most 65536 entries",
        Errno::DQUOT => "the Iovs that this pod has of it would be more than 1 TiB together: close some",
        Errno::NOMEM => {
            "the memory limit of this container or pod leaves no room for it: make it smaller, or raise \
             resources.limits.memory"
        }
        Errno::NOSPC => {
            "/dev/shm is too small for it: make that larger (annotation kube3fs.io/shm-size on the pod, --shm-size for a \
             container), or this smaller"
        }
        _ => return None,
    };
    Some((what, why))
}

/// Makes shared memory of `len` bytes with a name of its own.
pub(crate) fn new_shm(len: usize, numa: i32) -> Result<(ShmFile, Mapping), Error> {
    ShmFile::create(&format!("{SHM_PREFIX}{}", Uuid::new_v4()), len, numa)
}

/// The unit that the daemon registers memory in; a request must not straddle two. 0 is one block.
fn checked_block_size(size: usize, block_size: usize) -> Result<Option<u64>, Error> {
    if size == 0 {
        return Err(Error::Invalid("an Iov of 0 bytes".to_owned()));
    }
    if block_size > size {
        return Err(Error::Invalid(format!("a block of {block_size} bytes in an Iov of {size}")));
    }
    Ok((block_size != 0).then_some(block_size as u64))
}

/// A data buffer in shared memory. Dropping it unmaps the memory and, in the process that made it, ends the
/// registration and removes the file. Requests still in flight then end with an error or land in memory that the
/// daemon maps; nobody else's memory is touched.
#[derive(Debug)]
pub struct Iov {
    // Dropped in this order: first the daemon lets go, then the name goes, then the memory.
    _registration: Option<Registration>,
    file: Option<ShmFile>,
    mapping: Mapping,
    id: Uuid,
    made_in: Generation,
}

impl Iov {
    /// Makes and registers a buffer of `size` bytes, its pages present. `numa` below 0 binds to no node.
    pub fn create(mount: &Mount, size: usize, block_size: usize, numa: i32) -> Result<Iov, Error> {
        let block_size = checked_block_size(size, block_size)?;
        let (file, mapping) = new_shm(size, numa)?;
        let id = Uuid::new_v4();
        let name = IovName { id, block_size, ring: None }.to_string();
        let registration = Registration::new(mount, &name, file.path())?;
        mount.keep_alive();
        let made_in = Generation::current();
        Ok(Iov { _registration: Some(registration), file: Some(file), mapping, id, made_in })
    }

    /// Maps the buffer that another process registered as `id`, with the block size that it gave.
    pub fn open(mount: &Mount, id: Uuid, size: usize, block_size: usize) -> Result<Iov, Error> {
        let block_size = checked_block_size(size, block_size)?;
        let link = mount.iovs().join(IovName { id, block_size, ring: None }.to_string());
        let mapping = shm::open(&link, size)?;
        Ok(Iov { _registration: None, file: None, mapping, id, made_in: Generation::current() })
    }

    /// Removes the name of the shared-memory file, in the process that made it; registration and mappings stay.
    pub fn unlink(&mut self) {
        if let Some(file) = self.file.as_mut().filter(|_| self.made_in.is_current()) {
            file.unlink();
        }
    }

    /// By which requests name it.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never: an Iov of 0 bytes cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it is mapped. The daemon writes there while reads are in flight: make no Rust reference to bytes that
    /// a request in flight covers.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Copies out of the buffer; `None` if the range is not inside. What a request in flight writes meanwhile may be
    /// seen in part.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Option<()> {
        let from = self.range(offset, out.len())?;
        // SAFETY: the source is inside the mapping (`range`), the target is a slice of ours that cannot overlap it.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        Some(())
    }

    /// Copies into the buffer; `None` if the range is not inside.
    pub fn write_at(&self, offset: usize, data: &[u8]) -> Option<()> {
        let to = self.range(offset, data.len())?;
        // SAFETY: the target is inside the mapping (`range`), to which no reference is ever made.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        Some(())
    }

    fn range(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset <= end <= len`: inside the mapping.
        (end <= self.len()).then(|| unsafe { self.as_ptr().add(offset) })
    }
}

impl Drop for Iov {
    fn drop(&mut self) {
        if let Some(file) = self.file.as_mut().filter(|_| !self.made_in.is_current()) {
            file.disown();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeMount;

    #[test]
    fn an_iov_is_registered_while_it_lives_and_leaves_nothing() {
        let fake = FakeMount::new();
        let iov = Iov::create(&fake.mount(), 10_000, 4096, -1).unwrap();
        let link = fake.iovs().join(format!("{}.b4096", iov.id()));
        let shm = std::fs::read_link(&link).unwrap();
        assert!(shm.to_str().unwrap().starts_with("/dev/shm/hf3fs-iov-"));
        assert_eq!(std::fs::metadata(&shm).unwrap().len(), 10_000);
        drop(iov);
        assert!(link.symlink_metadata().is_err() && !shm.exists());
    }

    #[test]
    fn a_registration_that_the_daemon_forgot_is_unserved() {
        let fake = FakeMount::new();
        let shm = Path::new("/dev/shm/hf3fs-iov-none");
        let name = Uuid::new_v4().to_string();
        let registration = Registration::new(&fake.mount(), &name, shm).unwrap();
        assert!(registration.check().is_ok());
        std::fs::remove_file(fake.iovs().join(name)).unwrap();
        assert_eq!(registration.check().unwrap_err().errno(), libc::ENOTCONN);
    }

    #[test]
    fn an_opened_iov_shares_the_memory_and_does_not_unregister_it() {
        let fake = FakeMount::new();
        let made = Iov::create(&fake.mount(), 8192, 0, -1).unwrap();
        let opened = Iov::open(&fake.mount(), made.id(), 8192, 0).unwrap();
        made.write_at(100, b"shared").unwrap();
        let mut seen = [0; 6];
        opened.read_at(100, &mut seen).unwrap();
        assert_eq!(&seen, b"shared");
        drop(opened);
        assert!(Iov::open(&fake.mount(), made.id(), 8192, 0).is_ok());
    }

    #[test]
    fn opening_fails_for_another_block_size_a_larger_size_and_an_unlinked_file() {
        let fake = FakeMount::new();
        let mut made = Iov::create(&fake.mount(), 8192, 0, -1).unwrap();
        let open = |size, block| Iov::open(&fake.mount(), made.id(), size, block).unwrap_err().errno();
        assert_eq!(open(8192, 4096), libc::ENOENT);
        assert_eq!(open(8193, 0), libc::EINVAL);
        made.unlink();
        assert_eq!(Iov::open(&fake.mount(), made.id(), 8192, 0).unwrap_err().errno(), libc::ENOENT);
    }

    #[test]
    fn a_link_out_of_dev_shm_is_not_opened() {
        let fake = FakeMount::new();
        let id = Uuid::new_v4();
        std::os::unix::fs::symlink("/etc/passwd", fake.iovs().join(id.to_string())).unwrap();
        assert_eq!(Iov::open(&fake.mount(), id, 1, 0).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn no_bytes_and_a_block_larger_than_the_iov_are_invalid() {
        let fake = FakeMount::new();
        for (size, block) in [(0, 0), (4096, 4097)] {
            assert_eq!(Iov::create(&fake.mount(), size, block, -1).unwrap_err().errno(), libc::EINVAL);
        }
    }

    #[test]
    fn a_full_dev_shm_is_an_error_with_numbers_not_a_signal() {
        let fake = FakeMount::new();
        let stat = rustix::fs::statvfs("/dev/shm").unwrap();
        let too_much = stat.f_blocks * stat.f_frsize + (1 << 30);
        let error = Iov::create(&fake.mount(), too_much as usize, 0, -1).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        let text = error.to_string();
        assert!(text.contains(&too_much.to_string()) && text.contains("shm-size"), "{text}");
    }

    #[test]
    fn without_a_mount_nothing_is_left_in_dev_shm() {
        let mount = Mount::at("/no/such/mount").unwrap();
        assert_eq!(Iov::create(&mount, 4096, 0, -1).unwrap_err().errno(), libc::ENOENT);
    }

    #[test]
    fn copies_outside_the_iov_are_refused() {
        let fake = FakeMount::new();
        let iov = Iov::create(&fake.mount(), 100, 0, 0).unwrap();
        assert!(iov.write_at(96, b"1234").is_some() && iov.write_at(97, b"1234").is_none());
        assert!(iov.read_at(usize::MAX, &mut [0; 2]).is_none());
    }

    #[test]
    fn a_limit_is_named_with_the_volume_and_what_to_do() {
        for (ring, errno, expected) in [
            (true, Errno::MFILE, "1024 rings"),
            (false, Errno::MFILE, "4096 rings and Iovs"),
            (true, Errno::TOOBIG, "65536 entries"),
            (false, Errno::DQUOT, "1 TiB"),
            (false, Errno::NOMEM, "resources.limits.memory"),
            (false, Errno::NOSPC, "kube3fs.io/shm-size"),
        ] {
            let (what, why) = refusal(ring, errno).unwrap();
            let error = Error::Refused { what, mount: "/data".into(), errno, why };
            let text = error.to_string();
            assert!(text.contains(expected) && text.starts_with("the volume at /data"), "{text}");
            assert_eq!(error.errno(), errno.raw_os_error());
        }
        assert_eq!(refusal(true, Errno::ACCESS), None);
    }
}
