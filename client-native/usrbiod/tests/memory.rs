//! Who pays for memory that a client registers and has not touched.

mod common;

use common::served::Served;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 96 * MIB;

/// A memory cgroup with a limit that this process moves to, as a pod's; it moves back when dropped.
struct Pod {
    dir: PathBuf,
    before: PathBuf,
    v1: bool,
}

impl Pod {
    fn enter() -> Pod {
        let lines = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = |key: &str| lines.lines().find_map(|line| line.split_once(key)).map(|(_, path)| path);
        let (root, own, v1) = match path(":memory:/") {
            Some(own) => (Path::new("/sys/fs/cgroup/memory"), own, true),
            None => (Path::new("/sys/fs/cgroup"), path("0::/").expect("a memory cgroup"), false),
        };
        let dir = root.join(format!("usrbiod-test-{}", Uuid::new_v4()));
        fs::create_dir(&dir).expect("these tests make cgroups");
        let pod = Pod { dir, before: root.join(own), v1 };
        let limit = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(pod.dir.join(limit), LIMIT.to_string()).unwrap();
        fs::write(pod.dir.join("cgroup.procs"), "0").unwrap();
        pod
    }

    fn usage(&self) -> u64 {
        let name = if self.v1 { "memory.usage_in_bytes" } else { "memory.current" };
        fs::read_to_string(self.dir.join(name)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Sparse shared memory; its name goes when it is dropped.
struct Sparse(PathBuf);

impl Sparse {
    fn new(len: u64) -> Sparse {
        let path = Path::new("/dev/shm").join(format!("hf3fs-iov-{}", Uuid::new_v4()));
        File::create_new(&path).unwrap().set_len(len).unwrap();
        Sparse(path)
    }

    fn present(&self) -> u64 {
        fs::metadata(&self.0).unwrap().blocks() * 512
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn register(served: &Served, memory: &Sparse) -> Result<(), i32> {
    let link = served.mount().join("3fs-virt/iovs").join(Uuid::new_v4().to_string());
    symlink(&memory.0, link).map_err(|error| error.raw_os_error().unwrap())
}

#[test]
fn untouched_memory_is_the_clients_or_is_refused_and_nobody_is_killed() {
    let served = Served::on_disk();
    let pod = Pod::enter();
    let before = pod.usage();
    let fits = Sparse::new(32 * MIB);
    register(&served, &fits).unwrap();
    assert_eq!(fits.present(), 32 * MIB);
    let charged = pod.usage() - before;
    // The kernel counts in stocks of some pages for each core.
    assert!((31 * MIB..40 * MIB).contains(&charged), "{charged} bytes are on the client's account");
    let beyond = Sparse::new(LIMIT);
    assert_eq!(register(&served, &beyond), Err(libc::ENOMEM));
    assert_eq!(beyond.present(), 0);
    // What is present already costs nothing more.
    register(&served, &fits).unwrap();
    assert!(pod.usage() - before < 40 * MIB);
    let helpers = fs::read_to_string(pod.dir.join("cgroup.procs")).unwrap();
    assert_eq!(helpers.trim(), std::process::id().to_string(), "no helper is left");
}
