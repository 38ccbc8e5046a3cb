//! Builds C programs against the library and runs them, as an integrator would.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the built library under both names.
struct Installed(tempfile::TempDir);

impl Installed {
    fn new() -> Installed {
        // Beside the test program, where cargo puts the library that the test depends on.
        let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let built = deps.join("libusrbio_capi.so");
        assert!(built.exists(), "{} is not built", built.display());
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(built, dir.path().join("libusrbio.so")).unwrap();
        std::os::unix::fs::symlink("libusrbio.so", dir.path().join("libhf3fs_api_shared.so")).unwrap();
        Installed(dir)
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn compile(&self, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
        let program = self.dir().join(source).with_extension("out");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(compiler);
        command.args(["-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-rdynamic"]).args(flags);
        command.arg("-I").arg(root.join("include"));
        command.arg("-o").arg(&program).arg(root.join("tests/c").join(source));
        command.arg("-L").arg(self.dir()).arg(format!("-Wl,-rpath,{}", self.dir().display()));
        // The name that 3FS programs link by.
        run(command.args(["-lhf3fs_api_shared", "-ldl", "-lpthread"]));
        program
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// `timeout` ends a program that hangs.
fn run_program(program: &Path, arg: &Path) -> String {
    run(Command::new("timeout").arg("60").arg(program).arg(arg).env("HF3FS_USRBIO_LIB_LOG", "ERR"))
}

#[test]
fn bad_input_gets_the_contracts_number_and_never_crashes() {
    let installed = Installed::new();
    let program = installed.compile("gcc", "bad_input.c", &["-std=c99"]);
    let mount = tempfile::tempdir().unwrap();
    assert_eq!(run_program(&program, mount.path()), "ok\n");
}

#[test]
fn both_names_are_one_library() {
    let installed = Installed::new();
    let program = installed.compile("gcc", "both_names.c", &["-std=c99", "-Wl,--as-needed"]);
    assert_eq!(run_program(&program, installed.dir()), "ok\n");
}

#[test]
fn the_header_is_cxx11() {
    let installed = Installed::new();
    let program = installed.compile("g++", "header.cc", &["-std=c++11"]);
    assert_eq!(run_program(&program, installed.dir()), "");
}

#[test]
fn the_round_trip_program_compiles() {
    Installed::new().compile("gcc", "c_client.c", &["-std=c99"]);
}

#[test]
fn the_library_exports_the_21_functions_and_nothing_else() {
    let installed = Installed::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("check-abi.sh");
    run(Command::new("sh").arg(script).arg(installed.dir().join("libusrbio.so")));
}
