//! Every size, offset and number of the wire, as the 3FS contract lists them.

use std::mem::{align_of, offset_of, size_of};
use usrbio_wire::ioctl::{self, HardlinkArg, MoveArg, PunchHoleArg, RemoveArg};
use usrbio_wire::layout::Word;
use usrbio_wire::{Args, Cqe, Geometry, Priority, RingFlags, Sqe, sem};
use zerocopy::IntoBytes;

#[test]
fn request_arguments_have_56_bytes() {
    assert_eq!((size_of::<Args>(), align_of::<Args>()), (56, 8));
    assert_eq!(offset_of!(Args, buf_id), 0);
    assert_eq!(offset_of!(Args, buf_off), 16);
    assert_eq!(offset_of!(Args, file_iid), 24);
    assert_eq!(offset_of!(Args, file_off), 32);
    assert_eq!(offset_of!(Args, io_len), 40);
    assert_eq!(offset_of!(Args, userdata), 48);
}

#[test]
fn queue_entries_have_16_and_24_bytes() {
    assert_eq!((size_of::<Sqe>(), align_of::<Sqe>()), (16, 8));
    assert_eq!((offset_of!(Sqe, index), offset_of!(Sqe, userdata)), (0, 8));
    assert_eq!((size_of::<Cqe>(), align_of::<Cqe>()), (24, 8));
    assert_eq!(offset_of!(Cqe, index), 0);
    assert_eq!(offset_of!(Cqe, reserved), 4);
    assert_eq!(offset_of!(Cqe, result), 8);
    assert_eq!(offset_of!(Cqe, userdata), 16);
}

#[test]
fn index_words_are_the_first_16_bytes() {
    let words = [Word::SqeHead, Word::SqeTail, Word::CqeHead, Word::CqeTail];
    assert_eq!(words.map(|w| w as usize), [0, 4, 8, 12]);
}

#[test]
fn ring_sizes_are_those_of_hf3fs_ior_size() {
    let sizes = [
        (1, 4336),
        (16, 5776),
        (64, 10384),
        (100, 13840),
        (128, 16528),
        (1000, 100_240),
        (1024, 102_544),
        (4096, 397_456),
        (65536, 6_295_696),
    ];
    for (entries, len) in sizes {
        let geometry = Geometry::for_entries(entries).unwrap();
        assert_eq!(geometry.file_len(), len, "{entries} entries");
        assert_eq!(geometry.slots(), entries + 1);
        assert_eq!(Geometry::for_file_len(len as u64), Some(geometry));
    }
}

#[test]
fn the_arrays_of_a_64_entry_ring_lie_where_3fs_has_them() {
    let g = Geometry::for_entries(64).unwrap();
    let last = g.slot(64).unwrap();
    assert_eq!((g.args_at(0), g.args_at(63)), (16, 16 + 56 * 63));
    assert_eq!(g.cqe_at(g.slot(0).unwrap()), 16 + 56 * 65);
    assert_eq!(g.cqe_at(last), 16 + 56 * 65 + 24 * 64);
    assert_eq!(g.sqe_at(g.slot(0).unwrap()), 16 + 80 * 65);
    assert_eq!(g.sqe_at(last), 16 + 80 * 65 + 16 * 64);
    assert_eq!(g.sem_at(), 16 + 96 * 65);
    assert_eq!(g.file_len(), g.sem_at() + 32 + 4096);
}

#[test]
fn files_too_small_or_too_large_for_a_ring_have_no_geometry() {
    assert_eq!(Geometry::for_entries(0), None);
    assert_eq!(Geometry::for_entries(u32::MAX), None);
    for len in [0, 1, 4143, 4144, 4144 + 96, 4335, i32::MAX as u64 + 1, u64::MAX] {
        assert_eq!(Geometry::for_file_len(len), None, "{len} bytes");
    }
}

/// `_IOC(direction, 'h', number, size)` of Linux.
fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | u32::from(b'h') << 8 | number
}

#[test]
fn ioctl_numbers_follow_from_direction_size_and_number() {
    const WRITE: u32 = 1;
    const READ: u32 = 2;
    assert_eq!(ioctl::GET_MOUNT_NAME, ioc(READ, 0, 32));
    assert_eq!(ioctl::GET_PATH_OFFSET, ioc(READ, 1, 4));
    assert_eq!(ioctl::GET_MAGIC_NUM, ioc(READ, 2, 4));
    assert_eq!(ioctl::GET_IOCTL_VERSION, ioc(READ, 3, 4));
    assert_eq!(ioctl::RECURSIVE_RM, ioc(READ, 10, 4));
    assert_eq!(ioctl::FSYNC, ioc(READ, 11, 4));
    assert_eq!(ioctl::HARDLINK, ioc(WRITE, 12, size_of::<HardlinkArg>()));
    assert_eq!(ioctl::PUNCH_HOLE, ioc(WRITE, 13, size_of::<PunchHoleArg>()));
    assert_eq!(ioctl::MOVE, ioc(WRITE, 14, size_of::<MoveArg>()));
    assert_eq!(ioctl::REMOVE, ioc(WRITE, 15, size_of::<RemoveArg>()));
    assert_eq!((ioctl::SUPER_MAGIC, ioctl::IOCTL_VERSION), (0x8f3f_5fff, 1));
    assert_eq!(ioctl::PUNCH_HOLE_MAX, 1000);
}

#[test]
fn ioctl_arguments_lie_where_3fs_has_them() {
    assert_eq!((offset_of!(HardlinkArg, parent), offset_of!(HardlinkArg, name)), (0, 8));
    assert_eq!(size_of::<HardlinkArg>(), 264);
    assert_eq!((offset_of!(PunchHoleArg, n), offset_of!(PunchHoleArg, flags)), (0, 8));
    assert_eq!((offset_of!(PunchHoleArg, start), offset_of!(PunchHoleArg, end)), (16, 8016));
    assert_eq!(size_of::<PunchHoleArg>(), 16016);
    assert_eq!((offset_of!(MoveArg, src_parent), offset_of!(MoveArg, src_name)), (0, 8));
    assert_eq!((offset_of!(MoveArg, dst_parent), offset_of!(MoveArg, dst_name)), (264, 272));
    assert_eq!((offset_of!(MoveArg, to_trash), size_of::<MoveArg>()), (528, 536));
    assert_eq!((offset_of!(RemoveArg, parent), offset_of!(RemoveArg, name)), (0, 8));
    assert_eq!((offset_of!(RemoveArg, recursive), size_of::<RemoveArg>()), (264, 272));
}

#[test]
fn the_buffer_id_holds_uuid_bytes_in_text_order() {
    let id = uuid::Uuid::try_parse("00112233-4455-6677-8899-aabbccddeeff").unwrap();
    let args = Args { buf_id: *id.as_bytes(), ..Args::default() };
    assert_eq!(args.as_bytes()[..4], [0x00, 0x11, 0x22, 0x33]);
}

#[test]
fn flags_and_priorities_have_the_numbers_of_the_c_interface() {
    assert_eq!(RingFlags::ALLOW_READ_UNCOMMITTED.0, 1);
    assert_eq!(RingFlags::FORBID_READ_HOLES.0, 2);
    assert!(RingFlags(3).contains(RingFlags::FORBID_READ_HOLES));
    assert!(!RingFlags(1).contains(RingFlags::FORBID_READ_HOLES));
    for (raw, priority, link) in [
        (i32::MIN, Priority::High, "submit-ios.ph"),
        (-1, Priority::High, "submit-ios.ph"),
        (0, Priority::Normal, "submit-ios"),
        (1, Priority::Low, "submit-ios.pl"),
        (i32::MAX, Priority::Low, "submit-ios.pl"),
    ] {
        assert_eq!(Priority::from_c(raw), priority);
        assert_eq!(priority.semaphore_link(), link);
    }
}

#[test]
fn a_semaphore_word_holds_the_value_below_the_waiters() {
    let word = 2 * sem::ONE_WAITER + 5;
    assert_eq!((sem::value(word), sem::waiters(word)), (5, 2));
    assert_eq!(sem::drained(word), 2 * sem::ONE_WAITER);
}
