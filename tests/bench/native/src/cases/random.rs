//! 4 KiB random reads of a cached file: USRBIO against the mount and against native I/O.

use anyhow::Result;

use crate::contender::{Direction, Positioned, Uring, Usrbio};
use crate::duel::{Check, Entrant, fight};
use crate::fixture::{Area, Bench, Store, open};
use crate::pattern::{PAGE, Pattern};
use crate::report::{Comparison, Report};

const BATCHES: [usize; 4] = [1, 32, 128, 1024];

const MOUNT: &str = "pread on the mount";
const PLAIN: &str = "pread, no passthrough";
const URING: &str = "io_uring, fixed, native";
const PREAD: &str = "pread, native";

/// Runs the case on both backing file systems.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for store in [Store::Disk, Store::Tmpfs] {
        let area = bench.area(store)?;
        area.make_file("cached", bench.pace.file_size)?;
        for batch in BATCHES {
            compare(bench, report, &area, store, batch)?;
        }
    }
    Ok(())
}

fn compare(bench: &Bench, report: &mut Report, area: &Area, store: Store, batch: usize) -> Result<()> {
    let pattern = Pattern::random(bench.pace.file_size, PAGE);
    let through = open(&area.mount.join("cached"), false)?;
    let usrbio = Usrbio::new(bench.capi()?, &area.mount, through, batch, PAGE, Direction::Read)?;
    let pread = |dir: &std::path::Path| -> Result<Positioned> {
        Ok(Positioned::new(open(&dir.join("cached"), false)?, batch, PAGE, Direction::Read))
    };
    let mut entrants = [
        Entrant::new("USRBIO", usrbio, pattern.clone()),
        Entrant::new(
            URING,
            Uring::new(open(&area.dir.join("cached"), false)?, batch, PAGE)?,
            pattern.clone(),
        ),
        Entrant::new(PREAD, pread(&area.dir)?, pattern.clone()),
        Entrant::new(MOUNT, pread(&area.mount)?, pattern.clone()),
        Entrant::new(PLAIN, pread(&area.plain_mount)?, pattern),
    ];
    fight(&mut entrants, batch, bench.pace, &Check::Read)?;
    let (ours, theirs) = entrants.split_at(1);
    for entrant in theirs {
        let line = Comparison {
            case: format!("random reads of 4 KiB, {}, cached", area.name),
            what: format!("USRBIO, batch {batch}"),
            against: entrant.name().into(),
            unit: "kIOPS",
            scale: 1e-3,
            target: target(store, batch, entrant.name()),
        };
        report.add(line.of_rates(&ours[0].rates, &entrant.rates));
    }
    Ok(())
}

fn target(store: Store, batch: usize, against: &str) -> Option<f64> {
    match (batch, against) {
        (128, URING) if store == Store::Disk => Some(0.95),
        (128, URING) => Some(2.0),
        (128, PLAIN) => Some(12.0),
        (1, PLAIN) => Some(2.5),
        _ => None,
    }
}
