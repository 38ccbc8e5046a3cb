//! Names the machine, without which no figure means anything.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Where a run took place.
#[derive(Debug, Serialize)]
pub struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    memory_gib: u64,
    disk: String,
    /// Runnable tasks over the last minute, before the first case: other people's work shows here.
    load: f64,
}

impl Machine {
    /// This machine; `dir` is where the backing files lie.
    pub fn this(dir: &Path) -> Result<Self> {
        let name = rustix::system::uname();
        let kernel = format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy());
        let system = rustix::system::sysinfo();
        Ok(Self {
            kernel,
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into()),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (system.totalram as u64 * u64::from(system.mem_unit)) >> 30,
            disk: file_system(dir)?,
            // A fixed-point number with 16 bits behind the point.
            load: system.loads[0] as f64 / f64::from(1 << 16),
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel, processor, cores, memory_gib, disk, load } = self;
        write!(out, "{kernel}, {cores} cores of {processor}, {memory_gib} GiB, ")?;
        write!(out, "backing files on {disk} and tmpfs; load before the run {load:.1}")
    }
}

/// The type of the file system at `path`, as /proc/self/mountinfo names it.
pub fn file_system(path: &Path) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    let device = path.metadata()?.dev();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    let kind = line.and_then(|line| line.split_once(" - ")?.1.split(' ').next());
    Ok(kind.with_context(|| format!("no mount of device {number}"))?.to_owned())
}

/// The value of the first line `key : value` of a file of /proc.
pub fn field(file: impl AsRef<Path>, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
