//! The memory cgroup of another process.

use std::path::{Path, PathBuf};

/// Where the hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// A memory cgroup, of either version.
#[derive(Debug, PartialEq, Eq)]
pub struct MemoryCgroup {
    root: PathBuf,
    dir: PathBuf,
    v2: bool,
}

impl MemoryCgroup {
    /// That of process `tgid`; `None` where it cannot be reached from here.
    pub fn of(tgid: u32) -> Option<MemoryCgroup> {
        let lines = std::fs::read_to_string(format!("/proc/{tgid}/cgroup")).ok()?;
        let (hierarchy, path, v2) = parse(&lines)?;
        let root = Path::new(ROOT).join(hierarchy);
        let dir = root.join(path.trim_start_matches('/'));
        // Another namespace's, seen from outside, begins with `..`.
        let inside = !path.split('/').any(|part| part == "..");
        let found = MemoryCgroup { root, dir, v2 };
        (inside && found.procs().exists()).then_some(found)
    }

    /// The file to which a process writes 0 to move here.
    pub fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that may be charged to it before a limit of it or of a cgroup above is reached; pages of files that the kernel can
    /// drop count as free.
    pub fn room(&self) -> u64 {
        let all = self.dir.ancestors().take_while(|dir| dir.starts_with(&self.root));
        all.filter_map(|dir| self.room_of(dir)).min().unwrap_or(u64::MAX)
    }

    fn room_of(&self, dir: &Path) -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let (limit, usage, prefix) = match self.v2 {
            true => ("memory.max", "memory.current", ""),
            false => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        };
        let (limit, usage) = (number(limit)?, number(usage)?);
        let stat = read("memory.stat")?;
        let cache = |kind: &str| {
            let key = format!("{prefix}{kind} ");
            stat.lines().find_map(|line| line.strip_prefix(&key)?.parse::<u64>().ok()).unwrap_or(0)
        };
        Some(limit.saturating_sub(usage.saturating_sub(cache("active_file") + cache("inactive_file"))))
    }
}

/// The hierarchy's folder below [`ROOT`], the path in it, and whether it is version 2.
fn parse(lines: &str) -> Option<(&'static str, &str, bool)> {
    let fields = |line| {
        let mut fields = str::splitn(line, 3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    };
    let all = || lines.lines().filter_map(fields);
    let v1 = all().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    match v1 {
        Some((_, path)) => Some(("memory", path, false)),
        None => all().find(|(controllers, _)| controllers.is_empty()).map(|(_, path)| ("", path, true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_with_the_memory_controller_counts() {
        let hybrid = "9:name=systemd:/a\n4:cpu,memory:/kubepods/pod1\n0::/b:c\n";
        assert_eq!(parse(hybrid), Some(("memory", "/kubepods/pod1", false)));
        assert_eq!(parse("0::/kubepods.slice/x:y.scope\n"), Some(("", "/kubepods.slice/x:y.scope", true)));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        assert_eq!(MemoryCgroup::of(0), None);
        assert_eq!(MemoryCgroup::of(u32::MAX), None);
    }

    #[test]
    fn room_is_what_the_tightest_limit_above_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("pod/container");
        std::fs::create_dir_all(&inner).unwrap();
        let write = |at: &Path, max: &str, current: &str| {
            std::fs::write(at.join("memory.max"), max).unwrap();
            std::fs::write(at.join("memory.current"), current).unwrap();
            std::fs::write(at.join("memory.stat"), "anon 5\ninactive_file 30\nactive_file 20\n").unwrap();
        };
        write(&inner, "max\n", "700\n");
        let cgroup = MemoryCgroup { root: dir.path().to_owned(), dir: inner.clone(), v2: true };
        assert_eq!(cgroup.room(), u64::MAX);
        write(&dir.path().join("pod"), "1000\n", "800\n");
        assert_eq!(cgroup.room(), 250);
        write(&inner, "700\n", "800\n");
        assert_eq!(cgroup.room(), 0);
    }
}
