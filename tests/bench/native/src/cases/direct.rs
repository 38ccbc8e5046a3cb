//! 4 KiB random reads past the page cache: USRBIO on an O_DIRECT open against io_uring on one.

use anyhow::{Result, ensure};

use crate::contender::{Direction, Uring, Usrbio};
use crate::duel::{Check, Entrant, fight};
use crate::fixture::{Bench, Pace, Store, cached_share, drop_cached, open};
use crate::pattern::{PAGE, Pattern};
use crate::report::{Comparison, Report};

const BATCHES: [usize; 2] = [32, 128];
const TARGET: f64 = 0.95;
/// A device's own rate goes up and down more than a cache's does.
const MORE_ROUNDS: usize = 3;

/// Runs the case on the disk; a tmpfs has no device to go to.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let area = bench.area(Store::Disk)?;
    let size = bench.pace.file_size / 2;
    area.make_file("direct", size)?;
    let native = area.dir.join("direct");
    let pace = Pace { rounds: MORE_ROUNDS * bench.pace.rounds, ..bench.pace };
    for batch in BATCHES {
        drop_cached(&native)?;
        let pattern = Pattern::random(size, PAGE);
        let through = open(&area.mount.join("direct"), true)?;
        let usrbio = Usrbio::new(bench.capi()?, &area.mount, through, batch, PAGE, Direction::Read)?;
        let uring = Uring::new(open(&native, true)?, batch, PAGE)?;
        let mut entrants = [
            Entrant::new("USRBIO", usrbio, pattern.clone()),
            Entrant::new("io_uring, fixed, native", uring, pattern),
        ];
        fight(&mut entrants, batch, pace, &Check::Read)?;
        let cached = cached_share(&native)?;
        ensure!(
            cached < 0.01,
            "{:.0} % of the file are in the page cache: requests on an O_DIRECT open did not go to the device",
            cached * 100.0
        );
        let line = Comparison {
            case: format!("random reads of 4 KiB, {}, O_DIRECT", area.name),
            what: format!("USRBIO, batch {batch}"),
            against: entrants[1].name().into(),
            unit: "kIOPS",
            scale: 1e-3,
            target: Some(TARGET),
        };
        report.add(line.of_rates(&entrants[0].rates, &entrants[1].rates));
    }
    Ok(())
}
