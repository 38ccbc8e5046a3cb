//! What a single request answers, and when it is taken.

use super::peer::{Client, IOV_LEN, ME, Server, errno, pattern};
use crate::metrics::Rejected;
use crate::ring::Engine;
use crate::ring::io::Io;
use crate::session::Limits;
use crate::types::{Errno, Owner};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use usrbio_wire::Args;

fn serve(server: &Server) {
    server.serve(&mut Io::new(), Instant::now());
}

fn answer(server: &Server, client: &Client, args: Args) -> i64 {
    client.push(0, args);
    serve(server);
    client.results()[0]
}

#[test]
fn reads_arrive_and_are_answered_in_order() {
    for extension in ["plain", "direct"] {
        let server = Server::stepped();
        let content = pattern(64 << 10);
        server.files.add(7, &server.data_file(&format!("f.{extension}"), &content));
        let client = server.client(16, ".r0.t0");
        for i in 0..16 {
            let (at, len) = (u64::from(i) * 4096, if i % 3 == 0 { 1000 } else { 4096 });
            client.push(i, client.args(7, at, (15 - u64::from(i)) * 4096, len));
        }
        serve(&server);
        for (i, cqe) in client.pop().iter().enumerate() {
            let len = if i % 3 == 0 { 1000 } else { 4096 };
            assert_eq!((cqe.index, cqe.result, cqe.userdata), (i as i32, len as i64, 1000 + i as u64));
            assert_eq!(client.bytes(i * 4096, len), content[(15 - i) * 4096..][..len]);
        }
        assert_eq!(server.metrics.ring_reads.load(Ordering::Relaxed), 16);
    }
}

#[test]
fn hot_files_are_read_right_also_after_they_were_truncated_behind_our_back() {
    for dir in ["/tmp", "/dev/shm"] {
        let server = Server::stepped();
        let place = tempfile::tempdir_in(dir).unwrap();
        let path = place.path().join("hot");
        let content = pattern(5 << 20);
        std::fs::write(&path, &content).unwrap();
        server.files.add(7, &path);
        let client = server.client(16, ".r0.t0");
        let now = Instant::now();
        let mut io = Io::new();
        for round in 0..200u64 {
            let off = (round * 123_457) % ((5 << 20) - 4096);
            client.fill(0xee);
            client.push(0, client.args(7, 8, off, 4096));
            server.serve(&mut io, now + Duration::from_millis(round));
            assert_eq!(client.results(), [4096]);
            assert_eq!(client.bytes(8, 4096), content[off as usize..][..4096], "round {round}");
        }
        std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        client.push(0, client.args(7, 0, 0, 4096));
        server.serve(&mut io, now + Duration::from_millis(201));
        client.push(0, client.args(7, 0, 3 << 20, 4096));
        server.serve(&mut io, now + Duration::from_millis(202));
        assert_eq!(client.results().last(), Some(&0), "the chunk at 3 MiB is gone, and nobody died of it");
    }
}

#[test]
fn a_request_outside_its_buffer_or_across_a_block_is_einval() {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", &pattern(8192)));
    let client = server.client(8, ".r0.t0");
    let blocked = uuid::Uuid::new_v4();
    server.shm_file("blocked", 16384);
    server.rings.register(&format!("{blocked}.b4096"), "/dev/shm/blocked", &ME).unwrap();
    let in_blocks = |at, len| Args { buf_id: *blocked.as_bytes(), ..client.args(7, at, 0, len) };
    let unknown = Args { buf_id: [9; 16], ..client.args(7, 0, 0, 1) };
    let cases = [
        (client.args(7, IOV_LEN - 1, 0, 2), errno(Errno::INVAL)),
        (client.args(7, u64::MAX, 0, 2), errno(Errno::INVAL)),
        (client.args(7, 0, 0, u64::MAX), errno(Errno::INVAL)),
        (client.args(7, 0, 0, 0), errno(Errno::INVAL)),
        (client.args(7, 0, i64::MAX as u64, 2), errno(Errno::INVAL)),
        (client.args(7, 0, u64::MAX, 2), errno(Errno::INVAL)),
        (client.args(7, IOV_LEN - 1, 0, 1), 1),
        (in_blocks(4095, 2), errno(Errno::INVAL)),
        (in_blocks(4095, 1), 1),
        (in_blocks(4096, 4096), 4096),
        (in_blocks(0, 4097), errno(Errno::INVAL)),
        (unknown, errno(Errno::INVAL)),
    ];
    for (args, expected) in cases {
        assert_eq!(answer(&server, &client, args), expected, "{args:?}");
    }
    assert_eq!(server.metrics.rejected[Rejected::Buffer as usize].load(Ordering::Relaxed), 9);
}

#[test]
fn somebody_elses_buffer_is_unknown_but_root_may_use_all() {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", &pattern(4096)));
    let user = server.client_of(Owner { uid: 1001, gid: 1001, ..ME }, 4, ".r0.t0");
    let other = server.client_of(Owner { uid: 1002, gid: 1002, ..ME }, 4, ".r0.t0");
    let root = server.client(4, ".r0.t0");
    let theirs = Args { buf_id: *user.iov_id.as_bytes(), ..user.args(7, 0, 0, 16) };
    assert_eq!(answer(&server, &user, theirs), 16);
    assert_eq!(answer(&server, &other, theirs), errno(Errno::INVAL));
    assert_eq!(answer(&server, &root, theirs), 16);
}

#[test]
fn a_file_that_is_unknown_or_forbidden_is_ebadf_or_eacces() {
    let server = Server::stepped();
    let client = server.client(4, ".r0.t0");
    assert_eq!(answer(&server, &client, client.args(8, 0, 0, 1)), errno(Errno::BADF));
    assert_eq!(answer(&server, &client, client.args(403, 0, 0, 1)), errno(Errno::ACCESS));
}

#[test]
fn a_closed_file_is_looked_up_again() {
    let server = Server::stepped();
    let path = server.data_file("f", b"old");
    let file = server.files.add(7, &path);
    let client = server.client(4, ".r0.t0");
    assert_eq!(answer(&server, &client, client.args(7, 0, 0, 16)), 3);
    assert_eq!(answer(&server, &client, client.args(7, 0, 0, 16)), 3);
    assert_eq!(server.files.looked_up.load(Ordering::Relaxed), 1);
    file.closed.store(true, Ordering::Release);
    server.files.add(7, &server.data_file("g", b"newer"));
    assert_eq!(answer(&server, &client, client.args(7, 0, 0, 16)), 5);
    assert_eq!(client.bytes(0, 5), b"newer");
}

#[test]
fn results_end_at_the_last_data_byte_and_leave_the_rest_alone() {
    for (dir, flags, forbid) in [("/tmp", ".r0.t0", false), ("/dev/shm", ".r0.t0.f10", true)] {
        let server = Server::stepped();
        let place = tempfile::tempdir_in(dir).unwrap();
        let path = place.path().join("holes");
        let file = std::fs::File::create(&path).unwrap();
        // Data in 0..4096 and 64 KiB..64 KiB + 100; the file is 1 MiB long.
        file.write_all_at(&[1; 4096], 0).unwrap();
        file.write_all_at(&[2; 100], 64 << 10).unwrap();
        file.set_len(1 << 20).unwrap();
        server.files.add(7, &path);
        let client = server.client(4, flags);
        let read = |off, len| {
            client.fill(0xee);
            answer(&server, &client, client.args(7, 0, off, len))
        };
        assert_eq!(read(8192, 4096), 0, "wholly in a hole");
        assert_eq!(read(2 << 20, 4096), 0, "behind the end");
        assert_eq!(client.bytes(0, 1), [0xee]);
        assert_eq!(read(0, 8192), 4096, "a hole at the end of the request");
        assert_eq!((client.bytes(4095, 1), client.bytes(4096, 1)), (vec![1], vec![0xee]));
        let over_the_gap = read(4000, 128 << 10);
        if forbid {
            assert_eq!(over_the_gap, errno(Errno::NODATA));
            continue;
        }
        // File systems count data in blocks.
        assert_eq!(over_the_gap, (68 << 10) - 4000);
        assert_eq!(client.bytes(96, 1), [0], "the gap is zeros");
        assert_eq!(client.bytes((64 << 10) - 4000, 1), [2]);
        assert_eq!(client.bytes((68 << 10) - 4000, 1), [0xee]);
    }
}

#[test]
fn reads_end_at_the_end_of_the_file_and_follow_it_when_it_grows() {
    let server = Server::stepped();
    let path = server.data_file("f", &pattern(5000));
    server.files.add(7, &path);
    let client = server.client(4, ".r0.t0");
    client.fill(0xee);
    assert_eq!(answer(&server, &client, client.args(7, 0, 4096, 4096)), 904);
    assert_eq!(client.bytes(904, 1), [0xee]);
    assert_eq!(answer(&server, &client, client.args(7, 0, 5000, 1)), 0);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[5; 5000], 5000).unwrap();
    assert_eq!(answer(&server, &client, client.args(7, 0, 4096, 4096)), 4096);
}

#[test]
fn writes_arrive_and_the_file_system_hears_of_them_once_a_batch() {
    for (name, len) in [("plain", 4096), ("direct", 4096), ("plain", 300_000), ("big", IOV_LEN)] {
        let server = Server::stepped();
        let path = server.data_file(&format!("f.{name}"), b"");
        server.files.add(7, &path);
        let client = server.client(16, ".w0.t0");
        let content = pattern(IOV_LEN as usize);
        client.put(0, &content);
        let count = (IOV_LEN / len).min(8);
        for i in 0..count {
            client.push(i as u32, client.args(7, i * len, i * len, len));
        }
        serve(&server);
        assert_eq!(client.results(), vec![len as i64; count as usize]);
        assert!(std::fs::read(&path).unwrap() == content[..(count * len) as usize], "{name} {len}");
        let heard = server.files.written.load(Ordering::Relaxed);
        assert!(heard == 1 || name == "direct" && heard <= count as u32, "{name}: {heard}");
    }
}

#[test]
fn a_read_only_session_or_user_writes_nothing() {
    let limits = Limits::default();
    let sealed = Server::new(Engine::idle(), limits, true);
    sealed.files.add(7, &sealed.data_file("f", b"x"));
    let client = sealed.client(4, ".w0.t0");
    assert_eq!(answer(&sealed, &client, client.args(7, 0, 0, 1)), errno(Errno::ROFS));
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", b"x"));
    let client = server.client(4, ".w0.t0");
    assert_eq!(answer(&server, &client, client.args(7, 0, 0, 1)), 1);
    server.rings.set_user_read_only(0, true);
    assert_eq!(answer(&server, &client, client.args(7, 0, 0, 1)), errno(Errno::ROFS));
    server.rings.set_user_read_only(0, false);
    assert_eq!(answer(&server, &client, client.args(7, 0, 0, 1)), 1);
}

/// Completions there are after `count` requests were pushed, at some moments after the first turn.
fn taken(suffix: &str, count: u32, moments: &[u64]) -> Vec<usize> {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", &pattern(4096)));
    let client = server.client(64, suffix);
    (0..count).for_each(|i| client.push(i, client.args(7, 0, 0, 8)));
    let (begun, mut io) = (Instant::now(), Io::new());
    let mut all = 0;
    moments
        .iter()
        .map(|ms| {
            server.serve(&mut io, begun + Duration::from_millis(*ms));
            all += client.pop().len();
            all
        })
        .collect()
}

#[test]
fn io_depth_decides_what_is_taken() {
    assert_eq!(taken(".r0.t0", 5, &[0]), [5], "0: all");
    assert_eq!(taken(".r4.t0", 3, &[0, 60_000]), [0, 0], "4: no part of a batch, ever");
    assert_eq!(taken(".r4.t0", 11, &[0, 60_000]), [8, 8], "4: whole batches");
    assert_eq!(taken(".r-4.t0", 11, &[0]), [11], "-4 without a timeout: parts at once");
    assert_eq!(taken(".r-4.t10", 3, &[0, 9, 10]), [0, 0, 3], "-4: a part after the timeout");
    assert_eq!(taken(".r-4.t10", 9, &[0, 9, 11]), [8, 8, 9], "-4: whole batches at once");
    assert_eq!(taken(".r64.t0", 64, &[0]), [64], "a batch as long as the ring");
}

#[test]
fn one_post_answers_a_batch() {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", &pattern(4096)));
    let client = server.client(128, ".r0.t0");
    (0..128).for_each(|i| client.push(i, client.args(7, 0, 0, 8)));
    serve(&server);
    assert_eq!((client.tokens(), client.pop().len()), (1, 128));
}

#[test]
fn without_io_uring_all_is_the_same() {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f.direct", &pattern(8 << 20)));
    let client = server.client(16, ".r0.t0");
    (0..16).for_each(|i| client.push(i, client.args(7, u64::from(i) * 4096, u64::from(i) * 4096, 4096)));
    server.serve(&mut Io::blocking(), Instant::now());
    assert_eq!(client.results(), [4096; 16]);
    assert_eq!(client.bytes(0, 65536), pattern(8 << 20)[..65536]);
}
