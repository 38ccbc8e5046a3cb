//! 1 MiB sequential reads and writes of a cached file through USRBIO, against native pread and pwrite.

use std::fs::File;

use anyhow::Result;

use crate::contender::{Direction, Positioned, Usrbio};
use crate::duel::{Check, Entrant, fight};
use crate::fixture::{Bench, Store, open};
use crate::pattern::Pattern;
use crate::report::{Comparison, Report};

const BLOCK: usize = 1 << 20;
const BATCH: usize = 8;

/// Size of the files that sequential cases read and write: small enough that writeback does not set in.
pub const SIZE: u64 = 128 << 20;

/// Runs the case on both backing file systems.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for store in [Store::Disk, Store::Tmpfs] {
        let area = bench.area(store)?;
        for direction in [Direction::Read, Direction::Write] {
            let name = format!("sequential-{}", direction.name());
            area.make_file(&name, SIZE)?;
            let native = area.dir.join(&name);
            let witness = File::open(&native)?;
            let pattern = Pattern::sequential(SIZE, BLOCK);
            let through = open(&area.mount.join(&name), false)?;
            let usrbio = Usrbio::new(bench.capi()?, &area.mount, through, BATCH, BLOCK, direction)?;
            let positioned = Positioned::new(open(&native, false)?, BATCH, BLOCK, direction);
            let mut entrants = [
                Entrant::new("USRBIO", usrbio, pattern.clone()),
                Entrant::new("native", positioned, pattern),
            ];
            fight(&mut entrants, BATCH, bench.pace, &check(direction, &witness))?;
            let line = Comparison {
                case: format!("sequential, 1 MiB, {}, cached", area.name),
                what: format!("USRBIO {}, batch {BATCH}", direction.name()),
                against: format!("p{}, native", direction.name()),
                unit: "MiB/s",
                scale: 1.0,
                target: None,
            };
            report.add(line.of_rates(&entrants[0].rates, &entrants[1].rates));
        }
    }
    Ok(())
}

/// How to judge the data of a direction.
pub fn check(direction: Direction, witness: &File) -> Check<'_> {
    match direction {
        Direction::Read => Check::Read,
        Direction::Write => Check::Written(witness),
    }
}
