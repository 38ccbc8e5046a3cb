use super::*;
use crate::types::{Errno, Ino, Owner};

#[test]
fn a_successor_finds_nodes_open_files_and_directories() {
    for place in ["/tmp", "/dev/shm"] {
        let bed = Bed::on(place.into(), 64);
        let dir = bed.fs.mkdir(NodeId::ROOT, c"d", 0o755, 0, &ROOT).unwrap();
        for i in 0..300 {
            std::fs::write(bed.path(&format!("d/{i}")), "").unwrap();
        }
        let (file, opened) = bed.make("f");
        bed.fs.write(file.node, opened.fh, 0, b"before", false).unwrap();
        let (gone, gone_fh) = bed.make("gone");
        bed.fs.write(gone.node, gone_fh.fh, 0, b"unlinked", false).unwrap();
        // What the kernel has when it reads and writes the file itself: something that keeps the inode.
        let _kernel = File::open(bed.path("gone")).unwrap();
        bed.fs.unlink(NodeId::ROOT, c"gone").unwrap();
        std::fs::rename(bed.path("f"), bed.path("d/f")).unwrap();
        let dir_fh = bed.fs.opendir(dir.node, &ROOT, TGID).unwrap().fh;
        let mut seen = Vec::new();
        let mut offset = 0;
        bed.fs
            .readdir(dir.node, dir_fh, 0, false, &mut |e| {
                let room = seen.len() < 100;
                if room {
                    seen.push(e.name.to_vec());
                    offset = e.next;
                }
                room
            })
            .unwrap();

        let bed = bed.successor();
        assert_eq!(bed.fs.getattr(file.node).unwrap().ino, file.attr.ino);
        assert_eq!(bed.fs.lookup(dir.node, c"f").unwrap().node, file.node);
        let mut buf = [0; 16];
        assert_eq!(bed.fs.read(file.node, opened.fh, 0, &mut buf).unwrap(), 6);
        assert_eq!(bed.fs.write(gone.node, gone_fh.fh, 8, b"!", false).unwrap(), 1);
        assert_eq!(bed.fs.read(gone.node, gone_fh.fh, 0, &mut buf).unwrap(), 9);
        assert_eq!(&buf[..9], b"unlinked!");
        let ring = Owner { uid: 0, gid: 0, tgid: TGID, start: 1 };
        bed.fs.ring_file(Ino(file.attr.ino), &ring, true).unwrap();
        bed.fs
            .readdir(dir.node, dir_fh, offset, false, &mut |e| {
                seen.push(e.name.to_vec());
                true
            })
            .unwrap();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 303, "300 files, `f` that was moved there, `.` and `..`");

        bed.fs.releasedir(dir.node, dir_fh);
        bed.fs.release(file.node, opened.fh);
        bed.fs.release(gone.node, gone_fh.fh);
        bed.fs.forget(gone.node, 1);
        bed.fs.forget(file.node, 2);
        bed.fs.forget(dir.node, 1);
        assert_eq!((bed.state.nodes.iter().count(), bed.state.opens.iter().count()), (0, 0));
    }
}

#[test]
fn a_successor_does_not_take_a_reused_inode_number_for_an_old_node() {
    let bed = Bed::new();
    let (old, opened) = bed.make("f");
    bed.fs.release(old.node, opened.fh);
    bed.fs.unlink(NodeId::ROOT, c"f").unwrap();
    bed.fds.clear();
    std::fs::write(bed.path("g"), "new").unwrap();
    let bed = bed.successor();
    assert_eq!(bed.fs.getattr(old.node).unwrap_err(), Errno::STALE);
    assert_ne!(lookup(&bed, c"g").node, old.node);
}

#[test]
fn handles_of_a_predecessor_do_not_come_back() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    bed.fs.release(file.node, opened.fh);
    let bed = bed.successor();
    let again = bed.fs.open(file.node, RDWR, false, &ROOT, TGID).unwrap();
    assert_ne!(again.fh, opened.fh);
    // As when the kernel asks for the release a second time.
    bed.fs.release(file.node, opened.fh);
    assert_eq!(bed.fs.write(file.node, again.fh, 0, b"x", false).unwrap(), 1);
}

#[test]
fn a_node_on_another_device_lives_as_long_as_the_process() {
    let bed = Bed::new();
    std::fs::create_dir(bed.path("m")).unwrap();
    let Ok(mount) = Mounted::tmpfs(bed.path("m")) else { return eprintln!("skipped: cannot mount") };
    std::fs::write(bed.path("m/x"), "other device").unwrap();
    let top = lookup(&bed, c"m");
    let file = bed.fs.lookup(top.node, c"x").unwrap();
    assert!(file.attr.ino >> 60 == 0 && file.attr.ino >> 59 == 1, "a made-up inode number");
    assert_eq!(bed.fs.lookup(top.node, c"x").unwrap().node, file.node);
    assert_eq!(bed.fs.node_of(Ino(file.attr.ino)), Some(file.node));
    let fh = bed.fs.open(file.node, RDONLY, false, &ROOT, TGID).unwrap().fh;
    assert_eq!(bed.fs.read(file.node, fh, 0, &mut [0; 64]).unwrap(), 12);
    let bed = bed.successor();
    assert_eq!(bed.fs.getattr(file.node).unwrap_err(), Errno::STALE);
    let again = bed.fs.lookup(top.node, c"x");
    assert_eq!(again.unwrap_err(), Errno::STALE);
    let top_again = lookup(&bed, c"m");
    assert_ne!(top_again.node, top.node);
    let again = bed.fs.lookup(top_again.node, c"x").unwrap();
    assert_eq!(again.attr.ino, file.attr.ino, "the made-up number is stable");
    assert_ne!(again.node, file.node);
    drop((bed, mount));
}

/// A mount that goes with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: PathBuf) -> crate::types::Result<Mounted> {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("usrbiod-test", &at, "tmpfs", flags, None::<&CStr>)?;
        Ok(Mounted(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
