//! Small operations on names: our mount against libfuse's passthrough example over the same file system.
//!
//! Our mount lets a caller do what its own rights allow. The example does so with `default_permissions`; without it
//! everybody may do what root may, and the kernel asks for less.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::fixture::{Bench, Store, libfuse};
use crate::report::{Comparison, Report};

const ENTRIES: usize = 10_000;

/// The example's mount options, its name in the report, and what is asked of our mount beside it.
const THEIRS: [(&str, &str, Option<f64>); 2] = [
    ("default_permissions,allow_other", "libfuse passthrough.c", Some(1.5)),
    ("allow_other", "the same without rights", None),
];

struct Load {
    what: &'static str,
    /// An ext4 without a journal looks longer and longer for an inode that was not lately deleted, so what creates and
    /// deletes has a tmpfs.
    store: Store,
    prepare: fn(&Path) -> Result<()>,
    /// One timed unit of work below a directory; returns how many operations it was.
    work: fn(&Path) -> Result<usize>,
}

const LOADS: [Load; 2] = [
    Load { what: "create, stat, unlink", store: Store::Tmpfs, prepare: |_| Ok(()), work: create_stat_unlink },
    Load { what: "readdir, 10000 entries", store: Store::Disk, prepare: fill, work: list },
];

/// Runs the case.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if let Some(reason) = libfuse::missing() {
        report.skip("metadata", reason);
        return Ok(());
    }
    let program = libfuse::compile(bench.work())?;
    for load in &LOADS {
        compare(bench, report, &program, load)?;
    }
    Ok(())
}

fn compare(bench: &Bench, report: &mut Report, program: &Path, load: &Load) -> Result<()> {
    let area = bench.area(load.store)?;
    let [our_dir, their_dir] = ["names", "names-libfuse"].map(|name| area.dir.join(name));
    for dir in [&our_dir, &their_dir] {
        fs::create_dir_all(dir)?;
        (load.prepare)(dir)?;
    }
    let mut servers = vec![bench.serve(&our_dir, &bench.work().join("names-mount"), true)?];
    for (index, (options, ..)) in THEIRS.iter().enumerate() {
        let mount = bench.work().join(format!("names-libfuse-mount-{index}"));
        servers.push(libfuse::serve(program, &their_dir, &mount, options)?);
    }
    let mut rates = vec![Vec::new(); servers.len()];
    for round in 0..=bench.pace.rounds {
        for turn in 0..servers.len() {
            let side = (round + turn) % servers.len();
            let rate = rate(bench, &servers[side].mount, load.work)?;
            // Round 0 fills the caches.
            if round > 0 {
                rates[side].push(rate);
            }
        }
    }
    for ((_, against, target), theirs) in THEIRS.iter().zip(&rates[1..]) {
        let line = Comparison {
            case: format!("metadata, {}", area.name),
            what: load.what.into(),
            against: (*against).into(),
            unit: "k/s",
            scale: 1e-3,
            target: *target,
        };
        report.add(line.of_rates(&rates[0], theirs));
    }
    Ok(())
}

/// Operations per second.
fn rate(bench: &Bench, mount: &Path, work: fn(&Path) -> Result<usize>) -> Result<f64> {
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < bench.pace.slice {
        done += work(mount)?;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

fn create_stat_unlink(mount: &Path) -> Result<usize> {
    let path = mount.join("one");
    drop(File::create_new(&path)?);
    ensure!(path.metadata()?.len() == 0, "a new file is not empty");
    fs::remove_file(&path)?;
    Ok(1)
}

fn fill(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("many"))?;
    for index in 0..ENTRIES {
        File::create(dir.join("many").join(format!("entry-{index:05}")))?;
    }
    Ok(())
}

fn list(mount: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(mount.join("many"))? {
        entry?;
        count += 1;
    }
    ensure!(count == ENTRIES, "readdir found {count} of {ENTRIES} entries");
    Ok(count)
}
