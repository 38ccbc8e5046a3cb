use super::*;
use crate::fd::Access;
use crate::testing::{FakeMount, post_done, serve, serve_once, server};
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use usrbio_wire::Ino;
use usrbio_wire::layout::Word;
use usrbio_wire::mem::RingMem;

const BUFFER: Buffer = Buffer { id: [7; 16], size: 1 << 20 };

fn request(userdata: u64) -> Request {
    let file = FileId { ino: Ino(42), access: Access::ReadWrite };
    Request { file, file_offset: 4096 * userdata, len: 4096, iov_offset: 0, userdata }
}

fn wait(ring: &RingCore, min: usize, room: usize, timeout: Duration) -> Result<Vec<Cqe>, Error> {
    let mut out = vec![Cqe::default(); room];
    let count = Reaper(ring).wait(min, &mut out, Some(timeout))?;
    out.truncate(count);
    Ok(out)
}

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(30);

#[test]
fn a_ring_is_registered_by_its_full_name_and_its_file_has_no_name() {
    let fake = FakeMount::new();
    let options = RingOptions {
        io_depth: -4,
        priority: Priority::High,
        timeout_ms: 10,
        flags: RingFlags::FORBID_READ_HOLES,
        ..RingOptions::read(64)
    };
    let ring = fake.ring(&options);
    let link = fake.iovs().join(format!("{}.r-4.ph.t10.f10", ring.id()));
    assert!(!std::fs::read_link(&link).unwrap().exists());
    assert_eq!((ring.entries(), ring.memory().1), (64, 10384));
    drop(ring);
    assert!(link.symlink_metadata().is_err());
}

#[test]
fn wrong_options_are_invalid_before_anything_is_registered() {
    let fake = FakeMount::new();
    let wrong = [
        RingOptions::read(0),
        RingOptions::read(u32::MAX),
        RingOptions { io_depth: 5, ..RingOptions::write(4) },
        RingOptions { timeout_ms: 1 << 31, ..RingOptions::write(4) },
    ];
    for options in wrong {
        assert_eq!(RingCore::create(&fake.mount(), &options).unwrap_err().errno(), libc::EINVAL);
    }
    assert_eq!(std::fs::read_dir(fake.iovs()).unwrap().count(), 3, "only the three semaphores");
}

#[test]
fn a_ring_whose_semaphore_is_missing_leaves_no_registration() {
    let fake = FakeMount::new();
    let link = fake.iovs().join("submit-ios.pl");
    let options = RingOptions { priority: Priority::Low, ..RingOptions::read(1) };
    let create = || RingCore::create(&fake.mount(), &options).unwrap_err().errno();
    std::fs::remove_file(&link).unwrap();
    assert_eq!(create(), libc::ENOENT);
    std::os::unix::fs::symlink("/tmp/sem.x", &link).unwrap();
    assert_eq!(create(), libc::EIO);
    assert_eq!(std::fs::read_dir(fake.iovs()).unwrap().count(), 3);
}

#[test]
fn a_full_ring_says_so_and_takes_more_once_reaped() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(2));
    let mut server = server(&ring);
    assert_eq!(ring.prep(BUFFER, &request(10)), Ok(0));
    assert_eq!(ring.prep(BUFFER, &request(11)), Ok(1));
    assert_eq!(ring.prep(BUFFER, &request(12)), Err(PrepError::Full));
    serve_once(&ring, &mut server, |args| args.file_off as i64);
    assert_eq!(ring.prep(BUFFER, &request(12)), Err(PrepError::Full), "not reaped yet");
    let done = wait(&ring, 2, 8, LONG).unwrap();
    let seen: Vec<_> = done.iter().map(|cqe| (cqe.index, cqe.result, cqe.userdata)).collect();
    assert_eq!(seen, [(0, 40960, 10), (1, 45056, 11)]);
    assert_eq!(ring.prep(BUFFER, &request(12)), Ok(0));
}

#[test]
fn requests_are_checked_before_they_are_queued() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(2));
    let good = request(0);
    let out_of_iov = |iov_offset, len| {
        let error = ring.prep(BUFFER, &Request { iov_offset, len, ..good }).unwrap_err();
        matches!(error, PrepError::OutOfIov { .. })
    };
    assert!(
        out_of_iov(1 << 20, 1)
            && out_of_iov(1, 1 << 20)
            && out_of_iov(u64::MAX, 2)
            && out_of_iov(2, u64::MAX)
    );
    assert_eq!(ring.prep(BUFFER, &Request { len: 0, ..good }), Err(PrepError::Empty));
    let write_only = FileId { access: Access::Write, ..good.file };
    assert_eq!(ring.prep(BUFFER, &Request { file: write_only, ..good }), Err(PrepError::Access));
    assert_eq!(server(&ring).published(), Ok(0));
}

#[test]
fn a_batch_stops_at_the_first_wrong_request_and_queues_those_before() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(8));
    let mut batch: Vec<_> = (0..5).map(request).collect();
    batch[3].len = 0;
    let prepared = ring.prep_batch(BUFFER, &batch);
    assert_eq!(prepared, Prepared { queued: 3, stopped: Some(PrepError::Empty) });
    assert_eq!(ring.prep(BUFFER, &request(9)), Ok(3), "slots of the rest are free again");
    assert_eq!(server(&ring).published(), Ok(4));
}

#[test]
fn a_batch_larger_than_the_ring_is_queued_in_part() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(130));
    let mut server = server(&ring);
    let batch: Vec<_> = (0..200).map(request).collect();
    let prepared = ring.prep_batch(BUFFER, &batch);
    assert_eq!(prepared, Prepared { queued: 130, stopped: Some(PrepError::Full) });
    serve_once(&ring, &mut server, |_| 1);
    assert_eq!(wait(&ring, 130, 200, LONG).unwrap().len(), 130);
    assert_eq!(ring.prep_batch(BUFFER, &batch[130..]), Prepared { queued: 70, stopped: None });
}

#[test]
fn waiting_for_none_never_blocks_and_a_deadline_ends_a_wait() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(2));
    let start = Instant::now();
    let mut out = [Cqe::default(); 2];
    assert_eq!(Reaper(&ring).wait(0, &mut out, None).unwrap(), 0);
    assert_eq!(wait(&ring, 1, 2, NOW).unwrap(), []);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(wait(&ring, 1, 2, Duration::from_millis(30)).unwrap(), []);
    assert!(start.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_wait_gives_at_most_what_fits_and_stale_posts_do_not_end_the_next() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(8));
    let mut server = server(&ring);
    ring.prep_batch(BUFFER, &[request(0), request(1), request(2)]);
    serve_once(&ring, &mut server, |_| 1);
    for _ in 0..1000 {
        post_done(&ring, &server);
    }
    assert_eq!(wait(&ring, 5, 2, LONG).unwrap().len(), 2, "min is clamped to the room");
    assert_eq!(wait(&ring, 1, 2, LONG).unwrap().len(), 1);
    let start = Instant::now();
    assert_eq!(wait(&ring, 1, 2, Duration::from_millis(50)).unwrap(), []);
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn an_idle_waiter_sleeps() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(2));
    let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let before = cpu();
    assert_eq!(wait(&ring, 1, 2, Duration::from_millis(300)).unwrap(), []);
    let used = cpu() - before;
    assert!(used < Duration::from_millis(30), "{used:?}");
}

#[test]
fn one_directory_stays_open_for_all_objects_of_a_mount() {
    let fake = FakeMount::new();
    let objects = (fake.ring(&RingOptions::read(2)), fake.ring(&RingOptions::write(2)));
    let iov = Iov::create(&fake.mount(), 4096, 0, -1).unwrap();
    let open = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == fake.iovs()))
            .count()
    };
    assert_eq!(open(), 1);
    drop((objects, iov));
    assert_eq!(open(), 1, "3FS takes a close for the end of the process");
}

#[test]
fn one_thread_prepares_while_another_waits() {
    const COUNT: u64 = 20_000;
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::write(64));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&ring, &stop));
        scope.spawn(|| {
            let mut next = 0;
            while next < COUNT {
                let batch: Vec<_> = (next..COUNT.min(next + 40)).map(request).collect();
                next += ring.prep_batch(BUFFER, &batch).queued as u64;
                ring.submit().unwrap();
                std::thread::yield_now();
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            for cqe in wait(&ring, 1, 50, LONG).unwrap() {
                assert_eq!((cqe.userdata, cqe.result), (expected, 4096));
                expected += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_index_out_of_range_breaks_the_ring_with_an_error() {
    let fake = FakeMount::new();
    for word in [Word::SqeHead, Word::SqeTail] {
        let ring = fake.ring(&RingOptions::read(4));
        server(&ring).mem().store_index(word as usize, 5);
        assert_eq!(ring.prep(BUFFER, &request(0)).unwrap_err().errno(), libc::EIO);
        assert_eq!(wait(&ring, 0, 1, NOW).unwrap_err().errno(), libc::EIO, "and stays broken");
    }
    for word in [Word::CqeHead, Word::CqeTail] {
        let ring = fake.ring(&RingOptions::read(4));
        server(&ring).mem().store_index(word as usize, -1);
        assert_eq!(wait(&ring, 1, 1, LONG).unwrap_err().errno(), libc::EIO);
        assert_eq!(ring.submit().unwrap_err().errno(), libc::EIO);
    }
}

#[test]
fn a_completion_that_answers_no_request_breaks_the_ring_after_the_good_ones() {
    let fake = FakeMount::new();
    for wrong in [0, 2, 4, -1, i32::MAX] {
        let ring = fake.ring(&RingOptions::read(4));
        let mut server = server(&ring);
        ring.prep_batch(BUFFER, &[request(0), request(1)]);
        for _ in 0..2 {
            server.claim().unwrap();
        }
        server.stage(0, &Cqe { index: 0, ..Cqe::default() });
        server.stage(1, &Cqe { index: wrong, ..Cqe::default() });
        server.publish(2);
        assert_eq!(wait(&ring, 2, 4, LONG).unwrap().len(), 1);
        assert!(matches!(wait(&ring, 1, 4, LONG), Err(Error::Broken(_))), "{wrong}");
    }
}

#[test]
fn reaping_announces_requests_that_were_never_submitted() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(4));
    let mut server = server(&ring);
    ring.prep(BUFFER, &request(0)).unwrap();
    serve_once(&ring, &mut server, |_| 1);
    ring.prep(BUFFER, &request(1)).unwrap();
    assert!(!ring.submit.is_posted());
    wait(&ring, 1, 1, LONG).unwrap();
    assert!(ring.submit.is_posted());
}

#[test]
fn reaping_what_was_submitted_wakes_nobody() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(4));
    let other = fake.ring(&RingOptions::read(4));
    let mut server = server(&ring);
    ring.announced.store(1, Ordering::Relaxed);
    ring.prep(BUFFER, &request(0)).unwrap();
    serve_once(&ring, &mut server, |_| 1);
    wait(&ring, 1, 1, LONG).unwrap();
    assert!(!other.submit.is_posted());
}

#[test]
fn a_forked_child_gets_an_error_and_leaves_the_parents_registration() {
    let fake = FakeMount::new();
    let ring = fake.ring(&RingOptions::read(4));
    let link = fake.iovs().join(format!("{}.r0.t0", ring.id()));
    // SAFETY: the child only uses the ring, which takes no lock and allocates nothing on this path, and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let prep = ring.prep(BUFFER, &request(0)) == Err(PrepError::Forked);
        let submit = matches!(ring.submit(), Err(Error::Forked));
        let wait = matches!(ring.wait(1, &mut [MaybeUninit::uninit()], None), Err(Error::Forked));
        drop(ring);
        // SAFETY: ends the child without running the test harness's exit code.
        unsafe { libc::_exit(if prep && submit && wait { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert!(link.symlink_metadata().is_ok());
    assert_eq!(ring.prep(BUFFER, &request(0)), Ok(0));
}
