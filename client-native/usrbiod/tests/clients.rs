//! Clients that die, at any moment and in any way.

mod common;

use common::served::{Served, verify_client};
use common::wait_until;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const KILLS: u64 = 500;

fn names(served: &Served) -> Vec<String> {
    let entries = fs::read_dir(served.mount().join("3fs-virt/iovs")).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with("submit-ios"));
    names
}

fn leftovers() -> usize {
    let entries = fs::read_dir("/dev/shm").unwrap();
    entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("hf3fs-iov-")).count()
}

fn daemon_fds(served: &Served) -> usize {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", served.pid())).unwrap();
    fs::read_dir(Path::new("/proc").join(children.trim()).join("fd")).unwrap().count()
}

fn client(served: &Served, file: &str) -> Child {
    verify_client(&served.mount().join(file)).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

#[test]
fn five_hundred_killed_clients_leave_nothing_and_the_others_go_on() {
    let served = Served::on_disk();
    let mut witness =
        verify_client(&served.mount().join("witness")).arg("600").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(witness.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "running\n");
    let own = names(&served).len();
    assert_eq!(own, 3, "an Iov and two rings");
    let (fds, files) = (daemon_fds(&served), leftovers());
    for kill in 0..KILLS {
        let mut child = client(&served, "victim");
        // From before its first system call to well into its work.
        let moment = Duration::from_micros(kill * 7919 % 15_000);
        let begun = Instant::now();
        while begun.elapsed() < moment {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(witness.try_wait().unwrap(), None, "a client died of another's death");
    }
    let gone = Instant::now();
    wait_until("dead clients' Iovs and rings go away", || names(&served).len() == own);
    assert!(gone.elapsed() < Duration::from_secs(1), "it took {:?}", gone.elapsed());
    // The daemon never heard of a client that died between naming its file and registering it. The file goes when the
    // next client registers or ends: one more that registers and exits brings the last sweep.
    let mut last =
        verify_client(&served.mount().join("last")).arg("1").stdout(Stdio::null()).spawn().unwrap();
    assert!(last.wait().unwrap().success());
    wait_until("their memory is given back", || leftovers() <= files);
    wait_until("their fds are closed", || daemon_fds(&served) <= fds + 2);
    assert_eq!(witness.try_wait().unwrap(), None);
    witness.kill().unwrap();
    witness.wait().unwrap();
}
