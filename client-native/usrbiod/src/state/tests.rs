use super::file::{Entry, entry_at};
use super::records::Record;
use super::*;
use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use tempfile::TempDir;
use zerocopy::FromZeros;

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> std::result::Result<SessionState, OpenError> {
        SessionState::open(File::open(self.0.path()).unwrap(), "s")
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("s.state")
    }

    /// Changes a `u32` of the file, as another version would have written it.
    fn patch(&self, at: usize, value: u32) {
        let file = File::options().write(true).open(self.path()).unwrap();
        file.write_all_at(&value.to_ne_bytes(), at as u64).unwrap();
    }

    fn entry(&self, index: usize) -> Entry {
        let mut entry = Entry::new_zeroed();
        let file = File::open(self.path()).unwrap();
        file.read_exact_at(zerocopy::IntoBytes::as_mut_bytes(&mut entry), entry_at(index) as u64).unwrap();
        entry
    }

    /// Makes the table at `index` one that a newer version wrote.
    fn newer(&self, index: usize) -> Entry {
        self.patch(entry_at(index) + offset_of!(Entry, version), 99);
        self.entry(index)
    }

    fn refusal(&self) -> String {
        match self.open() {
            Err(OpenError::Refused(why)) => why,
            Err(OpenError::System(errno)) => panic!("{errno}"),
            Ok(_) => panic!("it was taken"),
        }
    }
}

const OPENS: usize = 3;

fn opened(node: u64) -> OpenRec {
    OpenRec { tag: 1, node, ..OpenRec::default() }
}

#[test]
fn a_successor_finds_what_was_written_and_reuses_what_was_freed() {
    let place = Place::new();
    let first = place.open().unwrap();
    let a = first.opens.insert(&opened(7)).unwrap();
    let b = first.opens.insert(&OpenRec { tag: 2, ..opened(8) }).unwrap();
    first.opens.remove(a);
    first.opens.field32(b, offset_of!(OpenRec, uid)).unwrap().store(5, Ordering::Relaxed);
    let second = place.open().unwrap();
    let found: Vec<_> = second.opens.iter().map(|(i, r)| (i, r.tag, r.node, r.uid)).collect();
    assert_eq!(found, [(b, 2, 8, 5)]);
    assert_eq!(second.opens.insert(&opened(9)), Some(a));
}

#[test]
fn a_file_that_is_no_state_is_refused() {
    let place = Place::new();
    std::fs::write(place.path(), "something else").unwrap();
    assert!(place.refusal().starts_with("it is no state file of usrbiod"));
}

#[test]
fn a_file_that_was_only_begun_is_made_anew() {
    let place = Place::new();
    File::create(place.path()).unwrap().set_len(1 << 20).unwrap();
    let state = place.open().unwrap();
    assert_eq!((state.header().tag, state.header().init_done), (1, 0));
}

#[test]
fn what_a_newer_version_wrote_is_read_where_it_used_nothing_new() {
    let place = Place::new();
    let index = place.open().unwrap().opens.insert(&opened(7)).unwrap();
    let entry = place.newer(OPENS);
    let state = place.open().unwrap();
    assert_eq!(state.opens.get(index).map(|rec| rec.node), Some(7));
    // What this version adds does not make the newer one's mark go.
    state.opens.insert(&opened(8)).unwrap();
    assert_eq!(place.entry(OPENS).version, 99);
    assert_eq!(entry.kind, OpenRec::KIND);
}

#[test]
fn what_a_newer_version_used_is_refused_with_the_reason() {
    for at in [0, OpenRec::SPARE, size_of::<OpenRec>() - 4] {
        let place = Place::new();
        let index = place.open().unwrap().opens.insert(&opened(7)).unwrap();
        let entry = place.newer(OPENS);
        let slot = entry.offset as usize + index as usize * size_of::<OpenRec>();
        // A tag that is not known, or a byte that was spare.
        place.patch(slot + at, 3);
        let why = place.refusal();
        assert!(why.contains("`opens` (version 99; this usrbiod knows 1)"), "{why}");
        place.patch(slot, 0);
        assert!(place.open().is_ok(), "a record that is free says nothing");
    }
}

#[test]
fn longer_records_of_a_newer_version_are_read_as_long_as_their_ends_are_zero() {
    let place = Place::new();
    drop(place.open().unwrap());
    let entry = place.newer(OPENS);
    let longer = size_of::<OpenRec>() + 16;
    place.patch(entry_at(OPENS) + offset_of!(Entry, record_size), longer as u32);
    place.patch(entry_at(OPENS) + offset_of!(Entry, capacity), 1000);
    let state = place.open().unwrap();
    let indexes = [5, 6, 7].map(|node| state.opens.insert(&opened(node)).unwrap());
    assert_eq!(indexes.map(|i| state.opens.get(i).unwrap().node), [5, 6, 7]);
    place.patch(entry.offset as usize + longer + size_of::<OpenRec>(), 1);
    assert!(place.refusal().contains("`opens`"));
    // It comes free, and another record takes its place.
    state.opens.remove(1);
    state.opens.insert(&opened(8)).unwrap();
    let again = place.open().unwrap();
    assert_eq!(again.opens.iter().map(|(_, rec)| rec.node).collect::<Vec<_>>(), [5, 8, 7]);
}

#[test]
fn a_table_that_is_not_known_is_left_alone_while_it_is_empty() {
    let place = Place::new();
    drop(place.open().unwrap());
    // The table of settings becomes one of another kind: this version makes its own behind it.
    let old = place.entry(6);
    place.patch(entry_at(6), 1000);
    let len = std::fs::metadata(place.path()).unwrap().len();
    let state = place.open().unwrap();
    assert!(state.settings.insert(&ConfRec { tag: 1, ..ConfRec::new_zeroed() }).is_some());
    drop(state);
    assert_eq!(place.entry(7).kind, ConfRec::KIND);
    assert!(place.entry(7).offset >= len && place.entry(6).offset == old.offset);
    assert_eq!(place.open().unwrap().settings.iter().count(), 1);

    place.patch(entry_at(6) + offset_of!(Entry, high_water), 1);
    assert!(place.open().is_ok(), "it had a record once");
    place.patch(old.offset as usize, 1);
    assert!(place.refusal().contains("a table of kind 1000"));
}

#[test]
fn a_directory_that_points_outside_the_file_is_refused() {
    for (field, value) in [
        (offset_of!(Entry, offset) + 4, 1),
        (offset_of!(Entry, offset), 12),
        (offset_of!(Entry, record_size), 0),
        (offset_of!(Entry, record_size), 44),
        (offset_of!(Entry, capacity), u32::MAX),
    ] {
        let place = Place::new();
        drop(place.open().unwrap());
        place.patch(entry_at(OPENS) + field, value);
        assert!(place.refusal().contains("damaged"), "field at {field}");
    }
}

#[test]
fn the_header_is_there_at_every_moment_of_its_change() {
    let place = Place::new();
    let state = place.open().unwrap();
    state.set_header(&HeaderRec { init_done: 1, max_write: 7, ..HeaderRec::default() });
    assert_eq!(place.open().unwrap().header().max_write, 7);
    std::thread::scope(|scope| {
        let change = scope.spawn(|| {
            for max_write in 0..20_000 {
                state.set_header(&HeaderRec { init_done: 1, max_write, ..HeaderRec::default() });
            }
        });
        while !change.is_finished() {
            assert_eq!(state.header().init_done, 1);
        }
    });
}

#[test]
fn nothing_is_read_or_written_where_no_record_ever_was() {
    let state = SessionState::anonymous().unwrap();
    assert!(state.nodes.get(0).is_none() && state.nodes.get(u32::MAX).is_none());
    assert!(state.nodes.field(5, 8).is_none() && state.nodes.field32(5, 4).is_none());
    state.nodes.remove(5);
    assert_eq!(state.nodes.iter().count(), 0);
}

#[test]
fn an_idle_session_takes_little_space_and_a_busy_one_in_chunks() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let state = place.open().unwrap();
    let taken = || std::fs::metadata(place.path()).unwrap().blocks() * 512;
    assert!(taken() <= 16 << 10, "{} bytes", taken());
    for node in 0..100_000 {
        state.opens.insert(&opened(node)).unwrap();
    }
    let used = 100_000 * size_of::<OpenRec>() as u64;
    assert!((used..used + (2 << 20)).contains(&taken()), "{} bytes for {used}", taken());
}

/// A tmpfs of `pages`, mounted for this thread only and gone with it.
fn on_full_disk(pages: u64, test: impl FnOnce(&std::path::Path) + Send) {
    std::thread::scope(|scope| {
        let run = scope.spawn(move || {
            use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
            use rustix::thread::UnshareFlags;
            // SAFETY: the file system attributes and mounts of this thread alone change; it ends with this function.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let options = std::ffi::CString::new(format!("size={}", pages * 4096)).unwrap();
            mount("none", dir.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
            test(dir.path());
            rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        });
        run.join().unwrap();
    });
}

#[test]
fn a_full_file_system_refuses_one_record_or_one_session_and_kills_nobody() {
    on_full_disk(256, |path| {
        let dir = File::open(path).unwrap();
        let busy = SessionState::open(&dir, "busy").unwrap();
        let mut nodes = 0u32;
        while busy.nodes.insert(&records::NodeRec { tag: 1, ..FromZeros::new_zeroed() }).is_some() {
            nodes += 1;
        }
        assert!(nodes > 2000, "{nodes}");
        // It leaves room for the little that others need.
        let other = SessionState::open(&dir, "other").unwrap();
        assert!(other.nodes.insert(&records::NodeRec { tag: 1, ..FromZeros::new_zeroed() }).is_some());

        // Now all is taken. What is there can be read and changed, and what came free be used.
        let filler = File::create(path.join("filler")).unwrap();
        while filler.write_at(&[1; 4096], filler.metadata().unwrap().len()).is_ok() {}
        while busy.opens.insert(&opened(1)).is_some() {}
        while busy.replies.insert(&ReplyRec { tag: 3, ..ReplyRec::default() }).is_some() {}
        assert!(busy.replies.iter().count() >= NOTED as usize);
        busy.nodes.remove(17);
        assert_eq!(busy.nodes.insert(&records::NodeRec { tag: 1, ..FromZeros::new_zeroed() }), Some(17));
        let full = SessionState::open(&dir, "new").err();
        assert_eq!(full, Some(OpenError::System(Errno::NOSPC)));
        drop((busy, other));
        let again = SessionState::open(&dir, "busy").unwrap();
        assert_eq!(again.nodes.iter().count() as u32, nodes);
        assert_eq!(again.objects.iter().count(), 0);

        // Room again.
        drop(filler);
        std::fs::remove_file(path.join("filler")).unwrap();
        assert!(again.opens.insert(&opened(1)).is_some());
    });
}
