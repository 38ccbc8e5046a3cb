use super::*;
use crate::fs::Folders;

/// A session of the daemon with these folders.
fn join(folders: &Arc<Folders>, dir: &tempfile::TempDir, read_only: bool, resumed: bool) -> Arc<Fs> {
    let state = Arc::new(SessionState::anonymous().unwrap());
    let (fs, _) = serve(dir, &state, &FdCache::new(64), read_only);
    folders.join(fs, resumed).unwrap()
}

#[test]
fn a_session_waits_for_what_the_kernel_of_an_older_one_keeps() {
    let (folders, dir) = (Arc::default(), tempfile::tempdir().unwrap());
    let first = join(&folders, &dir, false, false);
    assert!(first.folder.valid() > 0);
    let second = join(&folders, &dir, false, false);
    assert!(!second.folder.is_settled() && first.folder.is_settled());
    second.settled();
    assert!(second.folder.is_settled());
    let third = join(&folders, &dir, false, false);
    assert!(third.folder.is_settled(), "nobody has kept anything for long");
}

#[test]
fn sessions_that_are_resumed_keep_nothing_at_first_and_wait_for_none() {
    let (folders, dir) = (Arc::default(), tempfile::tempdir().unwrap());
    let first = join(&folders, &dir, false, true);
    assert_eq!(first.folder.valid(), 0);
    let second = join(&folders, &dir, false, true);
    assert!(first.folder.is_settled() && second.folder.is_settled());
    let new = join(&folders, &dir, false, false);
    assert!(!new.folder.is_settled(), "the first may have been alone until now");
}

#[test]
fn folders_without_a_common_part_do_not_matter_to_each_other() {
    let folders = Arc::default();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let sessions = dirs.each_ref().map(|dir| join(&folders, dir, false, false));
    assert!(sessions.iter().all(|fs| fs.folder.valid() > 0 && fs.folder.is_settled()));
}
