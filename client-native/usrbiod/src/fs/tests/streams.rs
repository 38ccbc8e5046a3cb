//! More directory streams than may be open.

use super::*;
use crate::types::Errno;
use std::collections::BTreeSet;

const ENTRIES: usize = 40;

fn filled(bed: &Bed) -> NodeId {
    let dir = bed.fs.mkdir(NodeId::ROOT, c"dir", 0o755, 0, &ROOT).unwrap().node;
    for i in 0..ENTRIES {
        File::create(bed.path(&format!("dir/{i}"))).unwrap();
    }
    dir
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Up to `room` names from `offset`, and where it goes on.
fn some(bed: &Bed, node: NodeId, fh: u64, offset: u64, room: usize) -> (Vec<String>, u64) {
    let (mut names, mut next) = (Vec::new(), offset);
    let mut sink = |entry: &crate::fs::DirEntry<'_>| {
        let fits = names.len() < room;
        if fits {
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            next = entry.next;
        }
        fits
    };
    bed.fs.readdir(node, fh, offset, false, &mut sink).unwrap();
    (names, next)
}

#[test]
fn a_thousand_open_directories_cost_few_fds_and_each_is_listed_to_its_end() {
    for place in [std::env::temp_dir(), env!("CARGO_MANIFEST_DIR").into()] {
        let bed = Bed::on(place, 64);
        let dir = filled(&bed);
        let before = open_fds();
        let mut streams: Vec<(u64, u64, Vec<String>)> =
            (0..1000).map(|_| (bed.fs.opendir(dir, &ROOT, TGID).unwrap().fh, 0, Vec::new())).collect();
        assert!(open_fds() < before + 100, "one that was never read costs none");
        for room in [7, 11, 1, ENTRIES] {
            for (fh, offset, names) in &mut streams {
                let (more, next) = some(&bed, dir, *fh, *offset, room);
                names.extend(more);
                *offset = next;
            }
            // Other tests of this process have some as well.
            assert!(open_fds() < before + 500, "{} fds", open_fds());
        }
        for (fh, _, names) in &streams {
            assert_eq!(names.len(), ENTRIES + 2);
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), ENTRIES + 2, "none twice");
            bed.fs.releasedir(dir, *fh);
        }
        assert_eq!(bed.fs.nodes.fds.used(), 0);
    }
}

#[test]
fn a_stream_that_was_closed_and_whose_directory_is_gone_answers_as_a_local_one() {
    let bed = Bed::new();
    let dir = filled(&bed);
    let fh = bed.fs.opendir(dir, &ROOT, TGID).unwrap().fh;
    some(&bed, dir, fh, 0, 3);
    while bed.fs.dirs.close_one() {}
    std::fs::remove_dir_all(bed.path("dir")).unwrap();
    assert_eq!(bed.fs.readdir(dir, fh, 0, false, &mut |_| true).err(), Some(Errno::NOENT));
}
