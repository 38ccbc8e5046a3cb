//! The control socket of a running daemon, as a peer sees it. Every request goes through the real binary.

mod common;

use common::daemon::{DaemonProcess, request};
use common::wait_until;
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use usrbiod::control::message::MAX_MESSAGE;
use usrbiod::control::socket::Seqpacket;

fn dir(path: &str) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn fuse() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/fuse").unwrap().into()
}

fn attach(name: &str, fds: &[&str]) -> Value {
    let config = json!({"name": name, "cluster": "c", "mount_point": "/mnt/nowhere"});
    json!({"op": "attach", "config": config, "fds": fds})
}

#[test]
fn hello_tells_version_ops_and_kernel() {
    let daemon = DaemonProcess::start();
    let (reply, _) = request(&daemon.connect(), &json!({"op": "hello", "id": 7}), &[]);
    assert_eq!(reply["ok"], true);
    assert_eq!(reply["id"], 7);
    assert_eq!(reply["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(reply["protocol"], 1);
    assert_eq!(reply["pid"], daemon.pid());
    assert_eq!(reply["draining"], false);
    assert!(reply["ops"].as_array().unwrap().contains(&json!("attach")));
    assert!(reply["kernel"]["release"].is_string() && reply["kernel"]["io_uring"].is_boolean());
}

#[test]
fn every_kind_of_wrong_input_has_its_code_and_the_connection_goes_on() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let refused = |bytes: &[u8], fds: &[OwnedFd]| {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let (reply, _) = common::daemon::exchange(&socket, bytes, &fds);
        assert_eq!(reply["ok"], false, "{reply}");
        assert!(reply["error"]["message"].as_str().unwrap().len() > 20, "{reply}");
        reply["error"]["code"].as_str().unwrap().to_owned()
    };
    let text = |value: Value| value.to_string().into_bytes();
    assert_eq!(refused(b"hello?", &[]), "not-json");
    assert_eq!(refused(b"[1, 2]", &[]), "not-json");
    assert_eq!(refused(b"\xff\xfe", &[]), "not-json");
    assert_eq!(refused(&vec![b' '; MAX_MESSAGE + 1], &[]), "too-large");
    assert_eq!(refused(br#"{"op": "hallo"}"#, &[]), "unknown-op");
    assert_eq!(refused(br#"{"id": 3}"#, &[]), "invalid-field");
    assert_eq!(refused(br#"{"op": "hello", "id": -3}"#, &[]), "invalid-field");
    assert_eq!(refused(br#"{"op": "hello", "colour": 3}"#, &[]), "unknown-field");
    assert_eq!(refused(br#"{"op": "detach"}"#, &[]), "invalid-field");
    assert_eq!(refused(br#"{"op": "detach", "session": "none"}"#, &[]), "session-unknown");
    assert_eq!(refused(br#"{"op": "stats", "session": "none"}"#, &[]), "session-unknown");
    let space = br#"{"op": "space", "session": "none", "total": 1, "used": 0}"#;
    assert_eq!(refused(space, &[]), "session-unknown");
    assert_eq!(refused(br#"{"op": "space", "session": "none", "total": -1}"#, &[]), "invalid-field");
    assert_eq!(refused(br#"{"op": "hello"}"#, &[dir("/")]), "too-many-fds");

    let two = ["fuse", "backing"];
    assert_eq!(refused(&text(attach("s", &two)), &[]), "missing-fds");
    assert_eq!(refused(&text(attach("s", &["backing"])), &[dir("/")]), "missing-fds");
    assert_eq!(refused(&text(attach("s", &two)), &[fuse(), dir("/"), dir("/")]), "too-many-fds");
    assert_eq!(refused(&text(attach("s", &["fuse", "fuse"])), &[fuse(), fuse()]), "invalid-field");
    assert_eq!(refused(&text(attach("s", &["fuse", "fork"])), &[fuse(), dir("/")]), "invalid-field");
    assert_eq!(refused(&text(attach("s", &two)), &[dir("/"), dir("/")]), "not-fuse");
    assert_eq!(refused(&text(attach("s", &two)), &[dir("/dev/null"), dir("/")]), "not-fuse");
    assert_eq!(refused(&text(attach("s", &two)), &[fuse(), dir("/etc/passwd")]), "not-a-directory");
    assert_eq!(refused(&text(attach("s", &two)), &[fuse(), dir("/")]), "not-mounted");
    for name in ["", ".hidden", "a/b", "..", "a b", &"x".repeat(129)] {
        assert_eq!(refused(&text(attach(name, &two)), &[fuse(), dir("/")]), "invalid-name", "{name:?}");
    }
    let mut extra = attach("s", &two);
    extra["config"]["colour"] = json!("red");
    assert_eq!(refused(&text(extra), &[fuse(), dir("/")]), "unknown-field");
    let give = |keys: &[&str]| text(json!({"op": "give", "session": "s", "keys": keys}));
    assert_eq!(refused(&give(&["a", "b"]), &[dir("/")]), "missing-fds");
    assert_eq!(refused(&give(&["a"]), &[dir("/"), dir("/")]), "too-many-fds");

    let (reply, _) = request(&socket, &json!({"op": "hello"}), &[]);
    assert_eq!(reply["sessions"], 0);
}

#[test]
fn a_refused_attach_leaves_no_state_file_and_no_fd() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let fds = [fuse(), dir("/")];
    request(&socket, &json!({"op": "hello"}), &[]);
    let before = daemon.open_fds();
    for _ in 0..3 {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let (reply, _) = request(&socket, &attach("s", &["fuse", "backing"]), &fds);
        assert_eq!(reply["error"]["code"], "not-mounted");
    }
    wait_until("the fds are closed", || daemon.open_fds() <= before);
    assert_eq!(std::fs::read_dir(daemon.state_dir()).unwrap().count(), 0);
}

#[test]
fn given_fds_are_closed_when_the_peer_hangs_up_without_attaching() {
    let daemon = DaemonProcess::start();
    let asker = daemon.connect();
    request(&asker, &json!({"op": "hello"}), &[]);
    let before = daemon.open_fds();
    let giver = daemon.connect();
    let fds: Vec<OwnedFd> = (0..200).map(|_| dir("/")).collect();
    let keys: Vec<String> = (0..200).map(|i| format!("key-{i}")).collect();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let (reply, _) = request(&giver, &json!({"op": "give", "session": "s", "keys": keys}), &borrowed);
    assert_eq!(reply["ok"], true);
    assert_eq!(daemon.open_fds(), before + 201);
    drop(giver);
    common::wait_until("the given fds are closed", || daemon.open_fds() == before);
}

#[test]
fn a_drained_daemon_refuses_sessions_and_still_answers() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let (reply, _) = request(&socket, &json!({"op": "drain"}), &[]);
    assert_eq!((&reply["ok"], &reply["sessions"]), (&json!(true), &json!(0)));
    let fds = [fuse(), dir("/")];
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let (reply, _) = request(&socket, &attach("s", &["fuse", "backing"]), &fds);
    assert_eq!(reply["error"]["code"], "draining");
    let (reply, _) = request(&socket, &json!({"op": "hello"}), &[]);
    assert_eq!(reply["draining"], true);
}

#[test]
fn the_keepers_connection_takes_no_requests_and_a_newer_keeper_replaces_it() {
    let daemon = DaemonProcess::start();
    let first = daemon.connect();
    assert_eq!(request(&first, &json!({"op": "keep"}), &[]).0["ok"], true);
    assert_eq!(request(&first, &json!({"op": "list"}), &[]).0["error"]["code"], "is-keeper");
    let second = daemon.connect();
    assert_eq!(request(&second, &json!({"op": "keep"}), &[]).0["ok"], true);
    assert!(first.recv_within(common::LONG).unwrap().is_none(), "the first keeper was not hung up on");
}

#[test]
fn list_and_fds_of_no_sessions_are_one_empty_message_each() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let (reply, fds) = request(&socket, &json!({"op": "list"}), &[]);
    assert_eq!((&reply["sessions"], reply.get("more")), (&json!([]), None));
    assert!(fds.is_empty());
    let (reply, fds) = request(&socket, &json!({"op": "fds"}), &[]);
    assert_eq!((&reply["keys"], reply.get("more")), (&json!([]), None));
    assert!(fds.is_empty());
}

#[test]
fn the_socket_is_for_its_owner_only_and_goes_with_the_daemon() {
    let mut daemon = DaemonProcess::start();
    let metadata = std::fs::symlink_metadata(daemon.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert!(daemon.terminate().success());
    assert!(!daemon.socket().exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut daemon = DaemonProcess::start();
    let second =
        common::usrbiod(&["daemon", "--socket", daemon.socket().to_str().unwrap(), "--state-dir", "/tmp"]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another process listens"), "{said}");
    request(&daemon.connect(), &json!({"op": "hello"}), &[]);

    daemon.kill();
    assert!(daemon.socket().exists());
    assert!(Seqpacket::connect(&daemon.socket()).is_err());
    daemon.restart();
    request(&daemon.connect(), &json!({"op": "hello"}), &[]);

    daemon.kill();
    std::fs::remove_file(daemon.socket()).unwrap();
    std::fs::write(daemon.socket(), "precious").unwrap();
    let third =
        common::usrbiod(&["daemon", "--socket", daemon.socket().to_str().unwrap(), "--state-dir", "/tmp"]);
    assert_eq!(third.status.code(), Some(1));
    assert_eq!(std::fs::read(daemon.socket()).unwrap(), b"precious");
}

#[test]
fn other_users_are_refused_even_if_they_reach_the_socket() {
    let daemon = DaemonProcess::start();
    daemon.open_to_everybody();
    let said = common::as_nobody(&["list", "--socket", daemon.socket().to_str().unwrap()]);
    assert_eq!(said.status.code(), Some(1));
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(text.contains("only root may use the control socket"), "{text}");
}

#[test]
fn the_clients_print_tables_and_json() {
    let daemon = DaemonProcess::start();
    let socket = daemon.socket();
    let socket = socket.to_str().unwrap();
    let table = common::usrbiod(&["list", "--socket", socket]);
    assert!(table.status.success() && table.stdout.starts_with(b"SESSION  CLUSTER"));
    let listed = common::usrbiod(&["list", "--json", "--socket", socket]);
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout).unwrap(), json!([]));
    let unknown = common::usrbiod(&["stats", "--socket", socket, "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no session nobody"));
    assert!(common::usrbiod(&["drain", "--socket", socket]).status.success());
    let nobody = common::usrbiod(&["list", "--socket", "/nowhere/control"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("start usrbiod"));
}

#[test]
fn metrics_are_served_on_a_unix_socket() {
    let daemon = DaemonProcess::start();
    let answer = daemon.http_get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    assert!(answer.contains("usrbiod_sessions 0") && answer.ends_with("# EOF\n"), "{answer}");
    assert!(daemon.http_get("/").starts_with("HTTP/1.1 404"));
}
