//! What a process can reach of a session's mount, and whether it may change it there.
//!
//! The kernel asks a mount before it lets a system call change something: a container's mount may be read-only, or show
//! a part of the volume only (`subPath`). One FUSE session stands behind all mounts of a pod, and a request does not say
//! through which of them it came. So what the kernel has *not* judged by the mount, an ioctl or a ring's request, is
//! judged by the caller's own mount table: it may what it could do by ordinary calls on some path.
//!
//! A process may make mounts of its own in a user namespace; the kernel lets it show there no more than it had, and
//! read-only stays read-only. What is not certain is refused: a caller that cannot be seen, a table that is very large.

use crate::sys::mountinfo::{Line, unescape};
use crate::sys::process::start_time;
use crate::types::{Caller, Errno, Owner, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Longest mount table that is read, in bytes: some thousand mounts.
const TABLE_MAX: u64 = 1 << 20;
/// Most mounts of ours, most mounts on one of them, and most bytes of their paths, in one table.
const OURS_MAX: usize = 64;
const HOLES_MAX: usize = 64;
const PATHS_MAX: usize = 16 << 10;
/// Most processes of a session whose view is kept: as many as may have rings.
const KEPT_MAX: usize = 1024;

/// The mount of one session, to be found in the tables of processes.
pub struct Mounts {
    /// Minor number of the mount's device; the major one is 0.
    device: Option<u32>,
    /// Views of the owners of rings, by process.
    kept: Mutex<Kept>,
}

/// By thread group and start time.
type Kept = HashMap<(u32, u64), Result<Arc<View>>>;

impl Mounts {
    /// The mount behind the `/dev/fuse` fd `fuse`. Newer kernels tell its device there (`fuse_connection` in
    /// `/proc/self/fdinfo`, seen on 6.18). On others it is `told`, what the peer says; or what is mounted at
    /// `mount_point` in the daemon's own table.
    pub fn new(fuse: impl AsFd, told: Option<u32>, mount_point: &Path) -> Mounts {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fuse.as_fd().as_raw_fd()));
        let from_kernel = info.ok().and_then(|info| {
            info.lines().find_map(|line| line.strip_prefix("fuse_connection:")?.trim().parse().ok())
        });
        let device = from_kernel.or(told).or_else(|| device_at(mount_point));
        Mounts { device, kept: Mutex::default() }
    }

    /// A caller's view. `EPERM`: it cannot be seen, or its mount table is too large.
    pub fn seen_by(&self, caller: &Caller) -> Result<View> {
        let device = self.device.ok_or(Errno::PERM)?;
        View::parse(&table_of(caller.pid)?, device)
    }

    /// The view that the owner of a ring had when it was first asked for, which is when it registers: ring workers find
    /// it kept, and read no table themselves. `EPERM` is kept as well.
    pub fn seen_by_owner(&self, owner: &Owner) -> Result<Arc<View>> {
        let process = (owner.tgid, owner.start);
        let known = self.lock().get(&process).cloned();
        known.unwrap_or_else(|| {
            let view = self.look(owner);
            self.keep(process, view.clone());
            view
        })
    }

    fn look(&self, owner: &Owner) -> Result<Arc<View>> {
        let device = self.device.ok_or(Errno::PERM)?;
        let table = table_of(owner.tgid)?;
        if start_time(owner.tgid) != Some(owner.start) {
            return Err(Errno::PERM);
        }
        View::parse(&table, device).map(Arc::new)
    }

    fn keep(&self, process: (u32, u64), view: Result<Arc<View>>) {
        let mut kept = self.lock();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(process, view);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One of device 0, of which processes have these tables.
    #[cfg(test)]
    pub(crate) fn of(tables: &[(Owner, &str)]) -> Mounts {
        let mounts = Mounts { device: Some(0), kept: Mutex::default() };
        for (owner, table) in tables {
            let view = View::parse(table.as_bytes(), 0).unwrap();
            mounts.keep((owner.tgid, owner.start), Ok(Arc::new(view)));
        }
        mounts
    }
}

/// The device of the topmost FUSE mount at `mount_point` in this process's table.
fn device_at(mount_point: &Path) -> Option<u32> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let there = Line::all(&table).filter(|line| unescape(line.at) == mount_point).last()?;
    let minor = there.device.strip_prefix(b"0:").filter(|_| there.fstype.starts_with(b"fuse"))?;
    std::str::from_utf8(minor).ok()?.parse().ok()
}

/// The mount table of a thread. `EPERM`: it cannot be seen, or is larger than [`TABLE_MAX`].
fn table_of(tid: u32) -> Result<Vec<u8>> {
    if tid == 0 {
        return Err(Errno::PERM);
    }
    let file = std::fs::File::open(format!("/proc/{tid}/mountinfo")).map_err(|_| Errno::PERM)?;
    let mut table = Vec::with_capacity(16 << 10);
    file.take(TABLE_MAX + 1).read_to_end(&mut table).map_err(|_| Errno::PERM)?;
    if table.len() as u64 > TABLE_MAX { Err(Errno::PERM) } else { Ok(table) }
}

/// A mount of ours that a process can reach.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Where the process sees it.
    at: PathBuf,
    /// What of the session's root is there, as a relative path.
    root: PathBuf,
    writable: bool,
    /// Paths of the session that other mounts cover there.
    holes: Vec<PathBuf>,
}

impl Place {
    /// Does it show the directory or file at `path` of the session?
    fn shows(&self, path: &Path) -> bool {
        path.starts_with(&self.root) && !self.holes.iter().any(|hole| path.starts_with(hole))
    }

    /// The path of the session that is seen at `path`.
    fn relative(&self, path: &Path) -> Option<PathBuf> {
        // `components` leaves out `.` and doubled slashes.
        let relative = self.root.join(path.strip_prefix(&self.at).ok()?).components().collect::<PathBuf>();
        self.shows(&relative).then_some(relative)
    }
}

/// What a process can reach of a session's mount. Paths of the session are relative to its root, and hold names only.
#[derive(Debug, PartialEq, Eq)]
pub struct View(Vec<Place>);

impl View {
    /// What a mount table shows of the device `0:device`. `EPERM`: more than is looked at.
    pub(crate) fn parse(table: &[u8], device: u32) -> Result<View> {
        let ours = format!("0:{device}");
        let lines: Vec<Line<'_>> = Line::all(table).collect();
        let mut on: HashMap<u32, Vec<&Line<'_>>> = HashMap::new();
        let by_id: HashMap<u32, &Line<'_>> = lines.iter().map(|line| (line.id, line)).collect();
        for line in lines.iter().filter(|line| line.parent != line.id) {
            on.entry(line.parent).or_default().push(line);
        }
        let mut places = Vec::new();
        for line in lines.iter().filter(|line| line.device == ours.as_bytes()) {
            if places.len() == OURS_MAX {
                return Err(Errno::PERM);
            }
            if !line.root.ends_with(b"//deleted") && is_visible(line, &by_id, &on) {
                places.push(place(line, on.get(&line.id).map_or(&[][..], Vec::as_slice))?);
            }
        }
        let paths = places.iter().flat_map(|place| place.holes.iter().chain([&place.at, &place.root]));
        let bytes: usize = paths.map(|path| path.as_os_str().len()).sum();
        if bytes > PATHS_MAX { Err(Errno::PERM) } else { Ok(View(places)) }
    }

    /// May the process change the directory at `path`? `EROFS`: it sees it on read-only mounts only. `EPERM`: not at all.
    pub fn may_change(&self, path: &Path) -> Result<()> {
        let seen = |writable| self.0.iter().any(|place| place.writable == writable && place.shows(path));
        match (seen(true), seen(false)) {
            (true, _) => Ok(()),
            (false, true) => Err(Errno::ROFS),
            (false, false) => Err(Errno::PERM),
        }
    }

    /// May the process remove or rename what is at `path`, with all below? As the directory that holds it; `EBUSY`: the
    /// process has a mount there, or below.
    pub fn may_take_away(&self, path: &Path) -> Result<()> {
        let parent = path.parent().ok_or(Errno::BUSY)?;
        self.may_change(parent)?;
        let is_used = |place: &Place| place.holes.iter().any(|hole| hole.starts_with(path));
        if self.0.iter().any(is_used) { Err(Errno::BUSY) } else { Ok(()) }
    }

    /// Can the process look at `path`?
    pub fn can_see(&self, path: &Path) -> bool {
        self.0.iter().any(|place| place.shows(path))
    }

    /// May the process change everything? Then no path needs to be known.
    pub fn is_whole(&self) -> bool {
        self.0
            .iter()
            .any(|place| place.writable && place.root.as_os_str().is_empty() && place.holes.is_empty())
    }

    /// Is `path` the root of a mount of the process?
    pub fn is_root(&self, path: &Path) -> bool {
        self.0.iter().any(|place| place.root == path && place.shows(path))
    }

    /// Can the process change anything at all?
    pub fn is_writable(&self) -> bool {
        self.0.iter().any(|place| place.writable)
    }

    /// The path of the session that the process names `path`. `EINVAL`: it is relative, leads elsewhere or holds `..`,
    /// which could mean another file than the caller thinks.
    pub fn relative(&self, path: &[u8]) -> Result<PathBuf> {
        let path = Path::new(OsStr::from_bytes(path));
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            return Err(Errno::INVAL);
        }
        self.0.iter().find_map(|place| place.relative(path)).ok_or(Errno::INVAL)
    }
}

/// What of the session is at `mount`, on which the mounts `on` lie.
fn place(mount: &Line<'_>, on: &[&Line<'_>]) -> Result<Place> {
    if on.len() > HOLES_MAX {
        return Err(Errno::PERM);
    }
    let (at, root) = (unescape(mount.at), unescape(mount.root.strip_prefix(b"/").unwrap_or(mount.root)));
    let hole = |other: &&Line<'_>| {
        Some(root.join(unescape(other.at).strip_prefix(&at).ok()?).components().collect())
    };
    let holes = on.iter().filter_map(hole).collect();
    Ok(Place { at, root, writable: mount.writable, holes })
}

/// Does the path of a mount lead to it, or to another mount on the way? What lies on the mount itself is a hole in it.
fn is_visible(mount: &Line<'_>, by_id: &HashMap<u32, &Line<'_>>, on: &HashMap<u32, Vec<&Line<'_>>>) -> bool {
    let mut current = mount;
    // A table is a tree; one that changed while it was read may look like anything.
    for _ in 0..=by_id.len() {
        let at = unescape(current.at);
        let covers = |other: &&Line<'_>| other.at != current.at && at.starts_with(unescape(other.at));
        if on.get(&current.parent).is_some_and(|beside| beside.iter().any(covers)) {
            return false;
        }
        match by_id.get(&current.parent) {
            Some(parent) if parent.id != current.id => current = parent,
            _ => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(table: &str) -> View {
        View::parse(table.as_bytes(), 39).unwrap()
    }

    const ROOT: &str = "1 0 8:1 / / rw - ext4 /dev/sda rw\n";

    fn may_change(view: &View, path: &str) -> Result<()> {
        view.may_change(Path::new(path))
    }

    #[test]
    fn a_container_may_change_what_its_writable_mounts_show() {
        let view =
            view(&format!("{ROOT}2 1 0:39 / /data rw - fuse.hf3fs s rw\n3 1 0:3 / /proc rw - proc p rw\n"));
        assert!(view.is_whole() && view.is_writable());
        assert_eq!((may_change(&view, ""), may_change(&view, "a/b")), (Ok(()), Ok(())));
        assert_eq!(view.may_take_away(Path::new("a")), Ok(()));
        assert_eq!(view.may_take_away(Path::new("")), Err(Errno::BUSY), "the root itself");
    }

    #[test]
    fn a_read_only_mount_allows_nothing() {
        for flags in ["ro,relatime - fuse.hf3fs s rw", "rw - fuse.hf3fs s ro"] {
            let view = view(&format!("{ROOT}2 1 0:39 / /data {flags}\n"));
            assert!(!view.is_whole() && !view.is_writable() && view.can_see(Path::new("x")));
            assert_eq!(may_change(&view, "x"), Err(Errno::ROFS));
        }
    }

    #[test]
    fn above_a_sub_path_nothing_is_seen_and_its_own_directory_stays() {
        let view = view(&format!("{ROOT}2 1 0:39 /mine /data rw - fuse.hf3fs s rw\n"));
        assert!(!view.is_whole());
        assert_eq!((may_change(&view, "mine"), may_change(&view, "mine/a")), (Ok(()), Ok(())));
        for outside in ["", "other", "mine2", "mine2/mine"] {
            assert_eq!(may_change(&view, outside), Err(Errno::PERM), "{outside}");
            assert!(!view.can_see(Path::new(outside)));
        }
        assert_eq!(view.may_take_away(Path::new("mine/a")), Ok(()));
        assert!(
            view.is_root(Path::new("mine"))
                && !view.is_root(Path::new("mine/a"))
                && !view.is_root(Path::new(""))
        );
        assert_eq!(view.may_take_away(Path::new("mine")), Err(Errno::PERM));
    }

    #[test]
    fn a_read_only_part_of_a_writable_volume_stays_read_only() {
        let table = format!(
            "{ROOT}2 1 0:39 / /data rw - fuse.hf3fs s rw\n3 2 0:39 /frozen /data/frozen ro - fuse.hf3fs s rw\n"
        );
        let view = view(&table);
        assert!(!view.is_whole());
        assert_eq!((may_change(&view, ""), may_change(&view, "other")), (Ok(()), Ok(())));
        assert_eq!(may_change(&view, "frozen"), Err(Errno::ROFS));
        assert_eq!(may_change(&view, "frozen/deep"), Err(Errno::ROFS));
        assert_eq!(view.may_take_away(Path::new("frozen")), Err(Errno::BUSY));
        assert_eq!(view.may_take_away(Path::new("other")), Ok(()));
        assert_eq!(view.relative(b"/data/frozen/x"), Ok("frozen/x".into()));
    }

    #[test]
    fn what_another_mount_covers_cannot_be_reached() {
        for cover in ["3 2 0:50 / /data rw - tmpfs t rw", "3 1 0:50 / /a rw - tmpfs t rw"] {
            let view = view(&format!(
                "{ROOT}2 1 0:39 / /a/data rw - fuse.hf3fs s rw\n{}\n",
                cover.replace("/data", "/a/data")
            ));
            assert_eq!(may_change(&view, "x"), Err(Errno::PERM), "{cover}");
        }
        let inside =
            view(&format!("{ROOT}2 1 0:50 / /a rw - tmpfs t rw\n3 2 0:39 / /a/data rw - fuse.hf3fs s rw\n"));
        assert_eq!(may_change(&inside, "x"), Ok(()));
        let deleted = view(&format!("{ROOT}2 1 0:39 /mine//deleted /data rw - fuse.hf3fs s rw\n"));
        assert_eq!(may_change(&deleted, "mine"), Err(Errno::PERM));
        // A process whose root is no mount of its table; a table that is a circle.
        assert_eq!(may_change(&view("2 9 0:39 / /data rw - fuse.hf3fs s rw\n"), "x"), Ok(()));
        let circle = "2 3 0:39 / /data rw - fuse.hf3fs s rw\n3 2 0:50 / /data rw - t s rw\n";
        assert_eq!(may_change(&view(circle), "x"), Err(Errno::PERM));
    }

    #[test]
    fn a_path_is_taken_relative_to_the_mount_that_it_leads_to() {
        let table = format!(
            "{ROOT}2 1 0:39 / /data rw - fuse.hf3fs s rw\n3 2 0:50 / /data/in rw - tmpfs t rw\n\
             4 1 0:39 /a/b /part rw - fuse.hf3fs s rw\n"
        );
        let view = view(&table);
        let relative = |path: &str| view.relative(path.as_bytes());
        assert_eq!(relative("/data/x/y"), Ok("x/y".into()));
        assert_eq!(relative("/data//x/./y/"), Ok("x/y".into()));
        assert_eq!(relative("/part/c"), Ok("a/b/c".into()));
        assert_eq!(relative("/data"), Ok("".into()));
        for other in ["x/y", "/", "/database/x", "/data/in/x", "/data/../data/x", "/data/x/..", ""] {
            assert_eq!(relative(other), Err(Errno::INVAL), "{other}");
        }
    }

    #[test]
    fn more_mounts_than_a_pod_has_are_refused() {
        let mount = |i: usize| format!("{} 1 0:39 / /m{i} rw - fuse.hf3fs s rw\n", i + 2);
        let table = |count: usize| ROOT.to_owned() + &(0..count).map(mount).collect::<String>();
        assert!(View::parse(table(OURS_MAX).as_bytes(), 39).is_ok());
        assert_eq!(View::parse(table(OURS_MAX + 1).as_bytes(), 39), Err(Errno::PERM));
        let on = |i: usize| format!("{} 2 0:50 / /m0/{i} rw - tmpfs t rw\n", i + 3);
        let holes = |count: usize| table(1) + &(0..count).map(on).collect::<String>();
        assert!(View::parse(holes(HOLES_MAX).as_bytes(), 39).is_ok());
        assert_eq!(View::parse(holes(HOLES_MAX + 1).as_bytes(), 39), Err(Errno::PERM));
    }

    #[test]
    fn a_process_that_cannot_be_seen_may_nothing() {
        let mounts = Mounts::new(std::fs::File::open("/dev/null").unwrap(), Some(39), Path::new("/nowhere"));
        for pid in [0, u32::MAX] {
            assert_eq!(mounts.seen_by(&Caller { uid: 0, gid: 0, pid }), Err(Errno::PERM));
        }
        let me = std::process::id();
        assert!(mounts.seen_by(&Caller { uid: 0, gid: 0, pid: me }).is_ok());
        let owner = Owner { uid: 0, gid: 0, tgid: me, start: 1 };
        assert_eq!(
            mounts.seen_by_owner(&owner).map(drop),
            Err(Errno::PERM),
            "another process of that number"
        );
        let none = Mounts::new(std::fs::File::open("/dev/null").unwrap(), None, Path::new("/nowhere"));
        assert_eq!(none.seen_by(&Caller { uid: 0, gid: 0, pid: me }), Err(Errno::PERM));
    }
}
