//! Small operations on names: our mount against libfuse's passthrough example over the same file system.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::fixture::{Bench, Store, libfuse};
use crate::report::{Comparison, Report};

const ENTRIES: usize = 10_000;
const TARGET: f64 = 1.5;

/// One timed unit of work below a directory; returns how many operations it was.
type Work = fn(&Path) -> Result<usize>;

const LOADS: [(&str, &str, Work); 2] =
    [("create, stat, unlink", "k/s", create_stat_unlink), ("readdir, 10000 entries", "k/s", list)];

/// Runs the case on the disk.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if let Some(reason) = libfuse::missing() {
        report.skip("metadata", reason);
        return Ok(());
    }
    let program = libfuse::compile(bench.work())?;
    let area = bench.area(Store::Disk)?;
    let [our_dir, their_dir] = ["names", "names-libfuse"].map(|name| area.dir.join(name));
    for dir in [&our_dir, &their_dir] {
        fs::create_dir_all(dir.join("many"))?;
        for index in 0..ENTRIES {
            File::create(dir.join("many").join(format!("entry-{index:05}")))?;
        }
    }
    let ours = bench.serve(&our_dir, &bench.work().join("names-mount"), true)?;
    let theirs = libfuse::serve(&program, &their_dir, &bench.work().join("names-libfuse-mount"))?;
    for (what, unit, work) in LOADS {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..=bench.pace.rounds {
            for turn in 0..2 {
                let side = (round + turn) % 2;
                let mount = [&ours.mount, &theirs.mount][side];
                let rate = rate(bench, mount, work)?;
                // Round 0 fills the caches.
                if round > 0 {
                    rates[side].push(rate);
                }
            }
        }
        let line = Comparison {
            case: format!("metadata, {}", area.name),
            what: what.into(),
            against: "libfuse passthrough.c".into(),
            unit,
            scale: 1e-3,
            target: Some(TARGET),
        };
        report.add(line.of_rates(&rates[0], &rates[1]));
    }
    Ok(())
}

/// Operations per second.
fn rate(bench: &Bench, mount: &Path, work: Work) -> Result<f64> {
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

fn list(mount: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(mount.join("many"))? {
        entry?;
        count += 1;
    }
    ensure!(count == ENTRIES, "readdir found {count} of {ENTRIES} entries");
    Ok(count)
}
