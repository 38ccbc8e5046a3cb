//! A session whose storage hangs costs itself, and no other session.

use super::peer::{Client, HANGS_AT_LOOKUP, HANGS_WHEN_TOLD, Server, errno, pattern, wait_until};
use crate::ring::Engine;
use crate::session::Limits;
use crate::types::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn session(engine: &Arc<Engine>) -> Server {
    let limits = Limits { ring_entries: 4096, ..Limits::default() };
    Server::new(engine.clone(), limits, false)
}

/// A session on healthy storage, cached and not.
fn neighbour(engine: &Arc<Engine>) -> (Server, Client) {
    let server = session(engine);
    server.files.add(7, &server.data_file("cached", &pattern(1 << 20)));
    server.files.add(8, &server.data_file("f.direct", &pattern(1 << 20)));
    let client = server.client(8, ".r0.t0");
    (server, client)
}

fn still_served(client: &Client) {
    for i in 0..100 {
        assert_eq!(client.request(client.args(7 + i % 2, 0, 4096, 4096)), 4096);
    }
}

#[test]
fn sessions_that_hang_in_a_call_cost_no_other() {
    // One core, and more hanging sessions than that.
    let engine = Engine::start(1).unwrap();
    let (_server, good) = neighbour(&engine);
    still_served(&good);
    for ino in [HANGS_AT_LOOKUP, HANGS_WHEN_TOLD] {
        let hung: Vec<(Server, Client)> = (0..5)
            .map(|_| {
                let server = session(&engine);
                server.files.hung.close();
                server.files.add(ino, &server.data_file("f", b"x"));
                let client = server.client(8, ".w0.t0");
                client.push(0, client.args(ino, 0, 0, 8));
                client.post();
                (server, client)
            })
            .collect();
        for (server, _) in &hung {
            wait_until("the call to hang", || server.files.hung.waiting.load(Ordering::SeqCst) == 1);
        }
        still_served(&good);
        let (_newcomer, new) = neighbour(&engine);
        still_served(&new);
        for (server, client) in &hung {
            server.files.hung.open();
            assert_eq!(client.wait(1)[0].result, 8);
        }
        still_served(&good);
    }
}

#[test]
fn a_session_that_hangs_is_ended_without_the_others() {
    let engine = Engine::start(1).unwrap();
    let (_server, good) = neighbour(&engine);
    let hung = session(&engine);
    hung.files.hung.close();
    let client = hung.client(8, ".r0.t0");
    client.push(0, client.args(HANGS_AT_LOOKUP, 0, 0, 8));
    client.post();
    wait_until("the call to hang", || hung.files.hung.waiting.load(Ordering::SeqCst) == 1);
    let begun = Instant::now();
    hung.rings.detach(Duration::from_millis(20));
    assert!(begun.elapsed() < Duration::from_secs(10), "it does not wait for the storage");
    still_served(&good);
    let files = hung.files.clone();
    drop(hung);
    still_served(&good);
    files.hung.open();
    drop((files, client));
    still_served(&good);
}

#[test]
fn requests_in_flight_that_never_end_are_their_sessions_own() {
    let engine = Engine::start(2).unwrap();
    let (_server, good) = neighbour(&engine);
    let bad = session(&engine);
    let (read_end, write_end) = rustix::pipe::pipe().unwrap();
    bad.files.add_endless(5, read_end.try_clone().unwrap());
    let (full_read_end, full_write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    while rustix::io::write(&full_write_end, &[0; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&full_write_end, rustix::fs::OFlags::empty()).unwrap();
    bad.files.add_endless(6, full_write_end.try_clone().unwrap());
    let rings: Vec<Client> =
        [".r0.t0", ".r0.ph.t0", ".w0.t0", ".w0.pl.t0"].map(|s| bad.client(2048, s)).into();
    for (client, ino) in rings.iter().zip([5, 5, 6, 6]) {
        (0..2000).for_each(|i| client.push(i, client.args(ino, 0, 0, 4096)));
        client.post();
    }
    wait_until("more in flight than one thread may have", || {
        let in_flight: u32 = bad.all_rings().iter().map(|ring| ring.in_flight()).sum();
        in_flight >= 1024
    });
    still_served(&good);
    let (_newcomer, new) = neighbour(&engine);
    still_served(&new);
    // Whoever reads the pipe now gets nothing, and writing breaks: all of it ends.
    drop((write_end, full_read_end, read_end, full_write_end));
    for (client, result) in rings.iter().zip([0, 0, errno(Errno::IO), errno(Errno::IO)]) {
        assert_eq!(client.wait(2000).last().unwrap().result, result);
    }
}

#[test]
fn a_session_without_work_for_long_is_served_at_once_again() {
    let engine = Engine::start(2).unwrap();
    let (server, good) = neighbour(&engine);
    still_served(&good);
    let core = server.rings.core();
    wait_until("the watcher to have it again", || core.home.load(Ordering::SeqCst) == 0);
    wait_until("its worker to have left", || core.crew.lock().unwrap().is_empty());
    still_served(&good);
    assert_eq!(core.crew.lock().unwrap().len(), 1);
}
