//! A C program that knows nothing but 3FS's header, against a live daemon.

mod common;

use common::served::Served;
use common::{disk_dir, succeed};
use std::path::Path;
use std::process::Command;

#[test]
fn a_c_program_reads_and_writes_through_rings_of_the_daemon() {
    let served = Served::on_disk();
    let tests = std::env::current_exe().unwrap();
    let library = tests.with_file_name("libusrbio_capi.so");
    assert!(library.exists(), "{library:?} is missing; `cargo test --workspace` builds it");
    let dir = disk_dir();
    std::os::unix::fs::symlink(library, dir.path().join("libusrbio.so")).unwrap();
    let capi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../usrbio-capi");
    let program = dir.path().join("c_client");
    succeed(
        60,
        Command::new("gcc")
            .args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-I"])
            .arg(capi.join("include"))
            .arg(capi.join("tests/c/c_client.c"))
            .arg("-L")
            .arg(dir.path())
            .args(["-lusrbio", "-o"])
            .arg(&program),
    );
    let said = succeed(60, Command::new(&program).arg(served.mount()).env("LD_LIBRARY_PATH", dir.path()));
    assert!(said.ends_with("ok\n"), "{said}");
}
