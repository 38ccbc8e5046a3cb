use super::*;

const APPEND: u32 = (libc::O_RDWR | libc::O_APPEND) as u32;

/// A session that may append to `log`, which holds `abc`.
fn bed() -> (Bed, NodeId, u64) {
    let bed = Bed::new();
    std::fs::write(bed.path("log"), "abc").unwrap();
    let node = lookup(&bed, c"log").node;
    let fh = bed.fs.open(node, APPEND, false, &ROOT, TGID).unwrap().fh;
    (bed, node, fh)
}

fn log(bed: &Bed) -> String {
    std::fs::read_to_string(bed.path("log")).unwrap()
}

#[test]
fn an_append_goes_to_the_end_of_the_file_and_is_noted_before() {
    let (bed, node, fh) = bed();
    let mut lengths = Vec::new();
    assert_eq!(bed.fs.append(node, fh, b"def", |length| lengths.push(length)), Ok(3));
    std::fs::write(bed.path("log"), "somebody else's").unwrap();
    assert_eq!(bed.fs.append(node, fh, b"!", |length| lengths.push(length)), Ok(1));
    assert_eq!((lengths, log(&bed)), (vec![3, 15], "somebody else's!".to_owned()));
}

#[test]
fn an_append_that_a_predecessor_only_began_is_done() {
    let (bed, node, fh) = bed();
    let bed = bed.successor();
    assert_eq!(bed.fs.append_again(node, fh, b"def", 3, |length| assert_eq!(length, 3)), Ok(3));
    assert_eq!(log(&bed), "abcdef");
}

#[test]
fn an_append_that_a_predecessor_did_is_not_done_again() {
    let (bed, node, fh) = bed();
    bed.fs.append(node, fh, b"def", |_| ()).unwrap();
    let bed = bed.successor();
    // Another request comes first.
    bed.fs.append(node, fh, b"ghi", |_| ()).unwrap();
    assert_eq!(bed.fs.append_again(node, fh, b"def", 3, |_| panic!("it was done")), Ok(3));
    assert_eq!(log(&bed), "abcdefghi");
}

#[test]
fn an_append_that_was_cut_short_is_answered_with_what_was_written() {
    let (bed, node, fh) = bed();
    bed.fs.append(node, fh, b"d", |_| ()).unwrap();
    let bed = bed.successor();
    bed.fs.append(node, fh, b"x", |_| ()).unwrap();
    assert_eq!(bed.fs.append_again(node, fh, b"def", 3, |_| panic!("it was begun")), Ok(1));
}

#[test]
fn the_same_bytes_of_another_append_are_not_taken_for_ones_own() {
    let (bed, node, fh) = bed();
    let bed = bed.successor();
    // The predecessor began with `line` at 3 and died; meanwhile another one writes the same.
    bed.fs.append(node, fh, b"line", |_| ()).unwrap();
    assert_eq!(bed.fs.append_again(node, fh, b"line", 3, |length| assert_eq!(length, 7)), Ok(4));
    assert_eq!(log(&bed), "abclineline");
}

#[test]
fn an_append_after_a_truncation_is_done() {
    let (bed, node, fh) = bed();
    let bed = bed.successor();
    std::fs::write(bed.path("log"), "").unwrap();
    assert_eq!(bed.fs.append_again(node, fh, b"def", 3, |length| assert_eq!(length, 0)), Ok(3));
    assert_eq!(log(&bed), "def");
}
