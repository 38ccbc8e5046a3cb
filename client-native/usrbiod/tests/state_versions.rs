//! States that earlier versions of usrbiod wrote. Each lies packed in `fixtures/`, with the program that made it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use tempfile::TempDir;
use usrbiod::state::{OpenError, SessionState};

/// What commit 38167ef wrote, by `fixtures/state-38167ef/make.rs`.
const FIRST: &[u8] = include_bytes!("fixtures/state-38167ef/all.packed");

/// Unpacks a fixture as the state of session `all`.
fn unpack(packed: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("all.state")).unwrap();
    let (len, mut rest) = number(packed);
    file.set_len(len).unwrap();
    while !rest.is_empty() {
        let (at, more) = number(rest);
        let (len, more) = number(more);
        let (bytes, more) = more.split_at(len as usize);
        file.write_all_at(bytes, at).unwrap();
        rest = more;
    }
    dir
}

fn number(bytes: &[u8]) -> (u64, &[u8]) {
    let (number, rest) = bytes.split_first_chunk().unwrap();
    (u64::from_le_bytes(*number), rest)
}

fn open(dir: &Path) -> Result<SessionState, OpenError> {
    SessionState::open(File::open(dir).unwrap(), "all")
}

fn text(bytes: &[u8]) -> &str {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..len]).unwrap()
}

fn check(state: &SessionState) {
    let header = state.header();
    assert_eq!((header.init_done, header.fuse_minor, header.max_write), (1, 45, 1 << 20));
    assert_eq!(header.fuse_flags, 0x1234_5678_9abc);
    assert_eq!(text(&header.semaphores[2]), "sem.hf3fs-submit-ios.2");
    assert_eq!(header.spare, [0; 10]);

    let replies: Vec<_> = state.replies.iter().collect();
    assert_eq!(
        replies.iter().map(|(i, r)| (*i, r.tag)).collect::<Vec<_>>(),
        [(0, 1), (1, 2), (3, 1), (4, 2)]
    );
    for (i, reply) in replies {
        let i = u64::from(i);
        assert_eq!((reply.opcode, reply.unique, reply.errno, reply.begun), (9, 100 + 2 * i, 17, 77));
        assert_eq!((reply.node, reply.fh, reply.ino), (2 + i, 1 << 32 | i, 1000 + i));
        assert_eq!((reply.opened, reply.spare), (5 << 32 | 1, [0; 9]));
    }

    let objects: Vec<_> = state.objects.iter().collect();
    assert_eq!(objects.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0, 2, 3]);
    for (i, object) in objects {
        assert_eq!(
            (object.tag, object.uid, object.gid, object.tgid),
            (1 + i % 2, 1000 + i, 2000 + i, 3000 + i)
        );
        assert_eq!((object.start, object.number), (4000 + u64::from(i), i));
        assert_eq!((object.journal_sq, object.journal_cq), (5 + i, 6 + i));
        assert_eq!(object.len, 4096 * (1 + u64::from(i)));
        assert_eq!(text(&object.name[..object.name_len as usize]), format!("9c5b-{i}.r{i}.t0"));
        assert_eq!(text(&object.target[..object.target_len as usize]), format!("/dev/shm/file-{i}"));
        assert_eq!(object.spare, [0; 19]);
    }

    let (opens, locks, nodes) = (&state.opens, &state.locks, &state.nodes);
    assert_eq!([opens.iter().count(), locks.iter().count(), nodes.iter().count()], [257; 3]);
    for i in (0..300u64).filter(|i| i % 7 != 0) {
        let at = i as u32;
        let (open, lock, node) = (opens.get(at).unwrap(), locks.get(at).unwrap(), nodes.get(at).unwrap());
        assert_eq!((open.tag, open.generation, open.node), (1 + at % 2, 7000 + at, 2 + i));
        assert_eq!((open.flags, open.uid, open.tgid, open.spare), (2, 1000, 42 + at, [0; 5]));
        assert_eq!((lock.tag, lock.kind, lock.dev, lock.ino), (1 + at % 2, at % 2, 2049, 5000 + i));
        assert_eq!((lock.owner, lock.start, lock.end), (1 << 60 | i, 10 * i, 10 * i + 4));
        assert_eq!((lock.pid, lock.spare), (9, [0; 5]));
        assert_eq!((node.backing_id, node.nlookup, node.ino, node.dev), (at % 5, 1 + i, 5000 + i, 2049));
        assert_eq!((node.handle_type, node.handle_len, node.spare), (1, 8, [0; 6]));
        assert_eq!(text(&node.handle), format!("handle-{i}"));
    }

    let settings: Vec<_> = state.settings.iter().collect();
    assert_eq!(settings.len(), 1);
    let (index, setting) = &settings[0];
    assert_eq!((*index, setting.tag, setting.uid, setting.spare), (1, 2, 1000, [0; 4]));
    assert_eq!(text(&setting.key[..setting.key_len as usize]), "sys.readonly");
    assert_eq!(text(&setting.value[..setting.value_len as usize]), "true");
}

#[test]
fn every_record_of_the_first_version_is_migrated() {
    let dir = unpack(FIRST);
    let state = open(dir.path()).unwrap();
    check(&state);
    // Only what the first version had freed is free.
    let record = state.opens.get(1).unwrap();
    let indexes: Vec<_> = (0..44).map(|_| state.opens.insert(&record).unwrap()).collect();
    assert_eq!(indexes.iter().filter(|i| *i % 7 == 0).count(), 43);
    assert_eq!(indexes.last(), Some(&300));
    drop(state);
    let again = open(dir.path()).unwrap();
    assert_eq!(again.opens.iter().count(), 301);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing lies beside it");
}

#[test]
fn a_migration_that_was_cut_short_begins_again() {
    let dir = unpack(FIRST);
    let unfinished = dir.path().join("all.state.new");
    std::fs::write(&unfinished, vec![7; 1 << 16]).unwrap();
    assert_eq!(SessionState::names(File::open(dir.path()).unwrap()).unwrap().len(), 1);
    check(&open(dir.path()).unwrap());
    assert!(!unfinished.exists());
}

#[test]
fn a_header_that_was_being_written_when_the_daemon_died_is_migrated() {
    let dir = unpack(FIRST);
    let file = File::options().write(true).open(dir.path().join("all.state")).unwrap();
    file.write_all_at(&[0; 4], 8).unwrap();
    check(&open(dir.path()).unwrap());
}

#[test]
fn a_state_of_the_first_version_that_is_cut_short_is_refused_and_stays() {
    let dir = unpack(FIRST);
    let path = dir.path().join("all.state");
    File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(open(dir.path()).err(), Some(OpenError::Refused("its file is cut short".to_owned())));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Not a test: a process that migrates, to be killed.
#[test]
fn migrating_process() {
    let Some(dir) = std::env::var_os("USRBIOD_MIGRATE_DIR") else { return };
    open(Path::new(&dir)).unwrap();
}

#[test]
fn a_process_killed_while_it_migrates_loses_nothing() {
    let mut cut_short = 0;
    for round in 0..40 {
        let dir = unpack(FIRST);
        let unfinished = dir.path().join("all.state.new");
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "migrating_process"]).env("USRBIOD_MIGRATE_DIR", dir.path());
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        while !unfinished.exists() && child.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        // Another moment each time: the files say how far it is.
        let enough = (round % 8) * 16;
        while unfinished.metadata().is_ok_and(|file| file.blocks() < enough) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        cut_short += usize::from(unfinished.exists());
        check(&open(dir.path()).unwrap());
    }
    assert!(cut_short > 0, "no process was killed in the middle");
}
