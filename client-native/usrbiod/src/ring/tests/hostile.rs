//! Clients that break the rules hurt themselves only.

use super::peer::{Client, Server, errno, pattern, wait_until};
use crate::metrics::Rejected;
use crate::types::Errno;
use std::sync::atomic::Ordering;
use usrbio_wire::RingMem;

fn two_clients() -> (Server, Client, Client) {
    let server = Server::running();
    server.files.add(7, &server.data_file("f", &pattern(1 << 20)));
    let (bad, good) = (server.client(8, ".r0.t0"), server.client(8, ".r0.t0"));
    (server, bad, good)
}

fn faults(server: &Server) -> u64 {
    server.metrics.rejected[Rejected::Fault as usize].load(Ordering::Relaxed)
}

fn still_served(client: &Client) {
    assert_eq!(client.request(client.args(7, 0, 4096, 4096)), 4096);
}

fn index_word(client: &Client, at: usize, value: i32) {
    crate::ring::shm::RingMap::new(&client.map).store_index(at, value);
}

#[test]
fn head_beyond_the_ring_stops_that_ring_only() {
    for value in [9, -1, i32::MAX, i32::MIN] {
        let (server, bad, good) = two_clients();
        index_word(&bad, 0, value);
        bad.post();
        wait_until("the fault to be counted", || faults(&server) == 1);
        still_served(&good);
    }
}

#[test]
fn completion_tail_beyond_the_ring_stops_that_ring_only() {
    let (server, bad, good) = two_clients();
    bad.push(0, bad.args(7, 0, 0, 1));
    index_word(&bad, 12, 77);
    bad.post();
    wait_until("the fault to be counted", || faults(&server) == 1);
    still_served(&good);
}

#[test]
fn a_request_that_names_no_argument_slot_stops_that_ring_only() {
    let (server, bad, good) = two_clients();
    bad.push(0, bad.args(7, 0, 0, 1));
    bad.push(1, bad.args(7, 0, 0, 1));
    let second = bad.geometry.sqe_at(bad.geometry.slot(1).unwrap());
    bad.map.word(second).store(8, Ordering::SeqCst);
    bad.post();
    wait_until("the fault to be counted", || faults(&server) == 1);
    assert_eq!(bad.results(), [1], "what came before it is answered");
    still_served(&good);
}

#[test]
fn daemon_owned_words_are_not_believed() {
    let (_server, bad, good) = two_clients();
    bad.push(0, bad.args(7, 0, 0, 8));
    index_word(&bad, 4, 99);
    index_word(&bad, 8, 99);
    bad.post();
    wait_until("the next publish to put them right", || bad.ring.completed() == Ok(1));
    assert_eq!(bad.results(), [8]);
    still_served(&good);
}

#[test]
fn a_truncated_iov_is_eacces_and_nobody_dies() {
    let (_server, bad, good) = two_clients();
    // Hot first, so that copies run into the lost pages.
    for _ in 0..100 {
        assert_eq!(bad.request(bad.args(7, 0, 0, 4096)), 4096);
    }
    bad.iov_file.set_len(0).unwrap();
    assert_eq!(bad.request(bad.args(7, 0, 0, 4096)), errno(Errno::ACCESS));
    assert_eq!(bad.request(bad.args(7, 8192, 0, 4096)), errno(Errno::ACCESS));
    still_served(&good);
}

#[test]
fn an_iov_truncated_under_load_hurts_no_other_client() {
    let (_server, bad, good) = two_clients();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..300u64 {
                if round == 150 {
                    bad.iov_file.set_len(4096).unwrap();
                }
                (0..8).for_each(|i| bad.push(i, bad.args(7, u64::from(i) * 65536, round * 64, 65536)));
                bad.post();
                for cqe in bad.wait(8) {
                    assert!(cqe.result == 65536 || cqe.result == errno(Errno::ACCESS), "{}", cqe.result);
                }
            }
        });
        let content = pattern(1 << 20);
        for round in 0..1000u64 {
            let off = round * 512;
            assert_eq!(good.request(good.args(7, 0, off, 4096)), 4096);
            assert_eq!(good.bytes(0, 64), content[off as usize..][..64]);
        }
    });
}

#[test]
fn a_truncated_ring_is_stopped_and_nobody_dies() {
    let (server, bad, good) = two_clients();
    assert_eq!(bad.request(bad.args(7, 0, 0, 8)), 8);
    bad.ring_file.set_len(0).unwrap();
    bad.post();
    wait_until("the fault to be counted", || {
        bad.post();
        faults(&server) == 1
    });
    still_served(&good);
}

#[test]
fn truncated_submit_semaphores_leave_the_periodic_scan() {
    let (_server, bad, _) = two_clients();
    assert_eq!(bad.request(bad.args(7, 0, 0, 8)), 8);
    bad.submit_file.set_len(0).unwrap();
    for _ in 0..3 {
        bad.push(0, bad.args(7, 0, 0, 8));
        assert_eq!(bad.wait(1)[0].result, 8);
    }
}

#[test]
fn a_submit_semaphore_full_of_tokens_is_drained_at_once() {
    let (server, bad, good) = two_clients();
    let full = i32::MAX as u64;
    bad.submit
        .word(0)
        .store(full | bad.submit.word(0).load(Ordering::SeqCst) & !0xffff_ffff, Ordering::SeqCst);
    still_served(&good);
    wait_until("the tokens to go", || bad.submit.word(0).load(Ordering::SeqCst) as u32 == 0);
    assert_eq!(faults(&server), 0);
}
