//! Workers: nobody's request is forgotten, whoever sleeps.

use super::peer::{PRIORITIES, Server, pattern};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use usrbio_wire::Priority;

#[test]
fn many_rings_of_many_threads_get_their_own_data() {
    let server = Server::running();
    let content = pattern(1 << 20);
    server.files.add(7, &server.data_file("cached", &content));
    server.files.add(8, &server.data_file("f.direct", &content));
    std::thread::scope(|scope| {
        for (suffix, ino) in
            [(".r0.t0", 7), (".r0.ph.t0", 8), (".r-4.t1", 7), (".r0.pl.t0", 8), (".r0.t0", 7)]
        {
            let (client, content) = (server.client(16, suffix), &content);
            scope.spawn(move || {
                for round in 0..300u64 {
                    let count = 1 + round % 16;
                    let off = |i: u64| ((round * 7919 + i * 4096) % ((1 << 20) - 8192)) & !511;
                    (0..count).for_each(|i| client.push(i as u32, client.args(ino, i * 8192, off(i), 8192)));
                    client.post();
                    for (i, cqe) in client.wait(count as usize).iter().enumerate() {
                        assert_eq!((cqe.index, cqe.result), (i as i32, 8192));
                        assert_eq!(client.bytes(i * 8192, 8), content[off(i as u64) as usize..][..8]);
                    }
                }
            });
        }
    });
    assert_eq!(
        server.metrics.ring_reads.load(Ordering::Relaxed),
        5 * (0..300).map(|r| 1 + r % 16).sum::<u64>()
    );
}

#[test]
fn requests_pushed_while_others_run_are_taken_too() {
    let server = Server::running();
    server.files.add(7, &server.data_file("f.direct", &pattern(1 << 20)));
    let client = server.client(64, ".r0.t0");
    let mut free: Vec<u32> = (0..64).collect();
    let mut done = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    while done < 5000 {
        while let Some(slot) = free.pop() {
            client.push(slot, client.args(7, u64::from(slot) * 4096, u64::from(slot) * 8192, 4096));
            client.post();
        }
        for cqe in client.pop() {
            assert_eq!(cqe.result, 4096);
            free.push(cqe.index as u32);
            done += 1;
        }
        assert!(Instant::now() < deadline, "{done} of 5000");
    }
}

#[test]
fn a_request_without_a_post_is_found_by_the_scan() {
    let server = Server::running();
    server.files.add(7, &server.data_file("f", &pattern(4096)));
    let client = server.client(4, ".r0.t0");
    client.push(0, client.args(7, 0, 0, 8));
    assert_eq!(client.wait(1)[0].result, 8);
}

#[test]
fn a_part_of_a_batch_is_taken_after_its_timeout_and_not_before() {
    let server = Server::running();
    server.files.add(7, &server.data_file("f", &pattern(4096)));
    let client = server.client(8, ".r-4.t30");
    let begun = Instant::now();
    client.push(0, client.args(7, 0, 0, 8));
    client.post();
    assert_eq!(client.wait(1)[0].result, 8);
    assert!(begun.elapsed() >= Duration::from_millis(30));
    // A full batch need not wait, also when a part of it was seen before.
    (0..3).for_each(|i| client.push(i, client.args(7, 0, 0, 8)));
    client.post();
    client.push(3, client.args(7, 0, 0, 8));
    client.post();
    assert_eq!(client.wait(4).len(), 4);
}

#[test]
fn a_post_while_all_sleep_wakes_somebody() {
    let server = Server::running();
    server.files.add(7, &server.data_file("f", &pattern(4096)));
    let clients: Vec<_> = PRIORITIES.iter().map(|(suffix, _)| server.client(4, suffix)).collect();
    for round in 0..200 {
        // Shorter and longer than a worker lingers.
        std::thread::sleep(Duration::from_micros(round));
        let client = &clients[round as usize % 3];
        let begun = Instant::now();
        assert_eq!(client.request(client.args(7, 0, 0, 8)), 8);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn urgent_rings_come_first() {
    let server = Server::stepped();
    for (suffix, _) in PRIORITIES.iter().rev() {
        server.client(4, suffix);
    }
    let order: Vec<Priority> = server.all_rings().iter().map(|ring| ring.attrs.priority).collect();
    assert_eq!(order, Priority::ALL);
}

#[test]
fn a_write_takes_set_id_bits_away() {
    let server = Server::running();
    let path = server.data_file("program", b"x");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o6755)).unwrap();
    server.files.add(7, &path);
    let client = server.client(4, ".w0.t0");
    assert_eq!(client.request(client.args(7, 0, 0, 8)), 8);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn one_engine_serves_many_sessions() {
    let servers: Vec<Server> = {
        let engine = crate::ring::Engine::start(2).unwrap();
        let session = |_| Server::new(engine.clone(), crate::session::Limits::default(), false);
        (0..20).map(session).collect()
    };
    let clients: Vec<_> = servers.iter().map(|server| server.client(4, ".r0.t0")).collect();
    for (server, client) in servers.iter().zip(&clients) {
        server.files.add(7, &server.data_file("f", b"x"));
        assert_eq!(client.request(client.args(7, 0, 0, 8)), 1);
    }
}

#[test]
fn a_session_that_closes_is_quiet_when_it_says_so() {
    let server = Server::running();
    server.files.add(7, &server.data_file("f.direct", &pattern(1 << 20)));
    let client = server.client(64, ".r0.t0");
    (0..64).for_each(|i| client.push(i, client.args(7, u64::from(i) * 4096, u64::from(i) * 4096, 4096)));
    client.post();
    assert!(server.rings.quiesce(Duration::from_secs(10)));
    let done = client.pop().len();
    client.post();
    assert!(server.rings.quiesce(Duration::from_secs(10)));
    assert_eq!(client.pop().len(), 0, "after {done} nothing more is answered");
}
