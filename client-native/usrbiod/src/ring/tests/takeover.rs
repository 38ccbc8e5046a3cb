//! A successor goes on where its predecessor died: no request is lost, none is answered twice.

use super::peer::{Client, ME, Server, errno, pattern};
use crate::ring::Engine;
use crate::ring::io::Io;
use crate::state::records::ObjectRec;
use crate::types::Errno;
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::Instant;
use usrbio_wire::{Cqe, RingMem};

/// A predecessor that answered 3 requests and has 5 more published, and a client that has seen none.
fn prepared() -> (Server, Client) {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", &pattern(64 << 10)));
    let client = server.client(8, ".r0.t0");
    (0..3).for_each(|i| client.push(i, client.args(7, u64::from(i) * 4096, 0, 8)));
    server.serve(&mut Io::new(), Instant::now());
    (3..8).for_each(|i| client.push(i, client.args(7, u64::from(i) * 4096, 0, 16)));
    (server, client)
}

fn number(server: &Server, client: &Client) -> u32 {
    server.rings.find(&client.ring_name).unwrap().number
}

fn words(client: &Client) -> [i32; 4] {
    let mem = crate::ring::shm::RingMap::new(&client.map);
    [0, 4, 8, 12].map(|at| mem.load_index(at))
}

#[test]
fn each_request_is_answered_once_wherever_the_predecessor_died() {
    // The steps of a publish, in their order.
    for died_after in ["claim", "stage", "journal", "sqeTail", "cqeHead"] {
        let (server, client) = prepared();
        let mem = crate::ring::shm::RingMap::new(&client.map);
        let journal =
            server.state.objects.field(number(&server, &client), offset_of!(ObjectRec, journal_sq)).unwrap();
        let steps = ["claim", "stage", "journal", "sqeTail", "cqeHead"];
        let reached =
            |step: &str| steps.iter().position(|s| *s == died_after) >= steps.iter().position(|s| *s == step);
        if reached("stage") {
            for i in 3..5 {
                let cqe = Cqe { index: i, result: 16, userdata: 1000 + i as u64, ..Cqe::default() };
                let words: [u64; 3] = zerocopy::transmute!(cqe);
                let at = client.geometry.cqe_at(client.geometry.slot(i).unwrap());
                words.iter().enumerate().for_each(|(k, word)| mem.store(at + 8 * k, *word));
            }
        }
        if reached("journal") {
            journal.store(5 | 5 << 32, Ordering::SeqCst);
        }
        if reached("sqeTail") {
            mem.store_index(4, 5);
        }
        if reached("cqeHead") {
            mem.store_index(8, 5);
        }
        let fds = server.kept_fds();
        let next = server.successor(Engine::idle(), fds);
        next.serve(&mut Io::new(), Instant::now());
        let answered: Vec<_> = client.pop().iter().map(|cqe| (cqe.index, cqe.result)).collect();
        let expected: Vec<_> = (0..8).map(|i| (i, if i < 3 { 8 } else { 16 })).collect();
        assert_eq!(answered, expected, "died after {died_after}");
        assert!(client.tokens() >= 2, "a client that waits is woken once more");
        assert_eq!(words(&client), [8, 8, 8, 8]);
    }
}

#[test]
fn positions_come_from_the_journal_and_not_from_the_client() {
    let (server, client) = prepared();
    let mem = crate::ring::shm::RingMap::new(&client.map);
    mem.store_index(4, 1);
    mem.store_index(8, 99);
    let next = server.successor(Engine::idle(), server.kept_fds());
    next.serve(&mut Io::new(), Instant::now());
    assert_eq!(client.results(), [8, 8, 8, 16, 16, 16, 16, 16]);
}

#[test]
fn what_has_no_fd_is_dropped_and_the_rest_goes_on() {
    let (server, client) = prepared();
    let lost = server.client(4, ".r0.t0");
    let mut fds = server.kept_fds();
    fds.remove(&lost.ring_name);
    fds.insert("stranger".into(), std::fs::File::open("/dev/null").unwrap().into());
    let next = server.successor(Engine::idle(), fds);
    let names: Vec<_> = next.rings.list().into_iter().map(|info| info.name).collect();
    assert_eq!(names, [client.iov_name.clone(), client.ring_name.clone(), lost.iov_name.clone()]);
    next.serve(&mut Io::new(), Instant::now());
    assert_eq!(client.pop().len(), 8);
    assert_eq!(next.state.objects.iter().count(), 3);
}

#[test]
fn registrations_limits_and_semaphores_are_the_same_after_it() {
    let (server, client) = prepared();
    let before = server.rings.list();
    let semaphore = server.rings.semaphore_target(usrbio_wire::Priority::Normal);
    let next = server.successor(Engine::idle(), server.kept_fds());
    assert_eq!(next.rings.list(), before);
    assert_eq!(next.rings.semaphore_target(usrbio_wire::Priority::Normal), semaphore);
    assert_eq!(next.rings.register(&client.iov_name, "/dev/shm/x", &ME), Err(Errno::EXIST));
    let unknown = next.rings.resume(HashMap::new());
    assert_eq!(unknown, 2, "a second time there is nothing left to take over");
}

#[test]
fn a_client_under_load_sees_each_request_once_through_many_successors() {
    let mut server = Server::running();
    server.files.add(7, &server.data_file("cached", &pattern(1 << 20)));
    server.files.add(8, &server.data_file("f.direct", &pattern(1 << 20)));
    let client = server.client(32, ".r0.t0");
    let fds = || server_fds(&client);
    let (mut sent, mut seen) = (vec![0u64; 32], vec![0u64; 32]);
    let mut busy = [false; 32];
    for round in 0..200u64 {
        for slot in 0..32u32 {
            if !busy[slot as usize] {
                let off = (round * 131 + u64::from(slot)) * 512 % (1 << 19);
                client.push(slot, client.args(7 + u64::from(slot % 2), u64::from(slot) * 4096, off, 4096));
                (busy[slot as usize], sent[slot as usize]) = (true, sent[slot as usize] + 1);
            }
        }
        client.post();
        if round % 5 == 0 {
            server.engine.stop();
            server = server.successor(Engine::start(2).unwrap(), fds());
        }
        for cqe in client.wait(1) {
            assert_eq!(cqe.result, 4096, "{}", errno(Errno::IO));
            assert!(std::mem::take(&mut busy[cqe.index as usize]), "slot {} was answered twice", cqe.index);
            seen[cqe.index as usize] += 1;
        }
    }
    let left = busy.iter().filter(|busy| **busy).count();
    if left > 0 {
        client.wait(left).iter().for_each(|cqe| seen[cqe.index as usize] += 1);
    }
    assert_eq!(seen, sent);
}

fn server_fds(client: &Client) -> HashMap<String, std::os::fd::OwnedFd> {
    let fd = |file: &std::fs::File| file.try_clone().unwrap().into();
    HashMap::from([
        (client.iov_name.clone(), fd(&client.iov_file)),
        (client.ring_name.clone(), fd(&client.ring_file)),
    ])
}
