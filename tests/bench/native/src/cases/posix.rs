//! read(2) and write(2) through the mount, as programs that know nothing of USRBIO do, against the same file natively.

use std::fs::File;

use anyhow::Result;

use super::sequential::{SIZE, check};
use crate::contender::{Direction, Streamed};
use crate::duel::{Entrant, fight};
use crate::fixture::{Bench, Store, open};
use crate::pattern::Pattern;
use crate::report::{Comparison, Report};

const BLOCKS: [(usize, &str); 2] = [(4 << 10, "4 KiB"), (1 << 20, "1 MiB")];
const TARGET: f64 = 0.9;

/// Runs the case on both backing file systems.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for store in [Store::Disk, Store::Tmpfs] {
        let area = bench.area(store)?;
        for direction in [Direction::Read, Direction::Write] {
            let name = format!("posix-{}", direction.name());
            area.make_file(&name, SIZE)?;
            let native = area.dir.join(&name);
            let witness = File::open(&native)?;
            for (block, label) in BLOCKS {
                let pattern = Pattern::sequential(SIZE, block);
                let through = Streamed::new(open(&area.mount.join(&name), false)?, 1, block, direction);
                let straight = Streamed::new(open(&native, false)?, 1, block, direction);
                let mut entrants = [
                    Entrant::new("mount", through, pattern.clone()),
                    Entrant::new("native", straight, pattern),
                ];
                fight(&mut entrants, 1, bench.pace, &check(direction, &witness))?;
                let line = Comparison {
                    case: format!("POSIX, sequential, {}, cached", area.name),
                    what: format!("{}(2), {label}, mount", direction.name()),
                    against: format!("{}(2), native", direction.name()),
                    unit: "MiB/s",
                    scale: block as f64 / f64::from(1 << 20),
                    target: Some(TARGET),
                };
                report.add(line.of_rates(&entrants[0].rates, &entrants[1].rates));
            }
        }
    }
    Ok(())
}
