//! How long one 4 KiB random read takes: USRBIO with batch 1 against pread without passthrough.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::contender::{Contender, Direction, Positioned, Usrbio};
use crate::fixture::{Bench, Store, open};
use crate::pattern::{PAGE, Pattern};
use crate::report::{Comparison, Report};
use crate::stats::percentile;

/// Runs the case on both backing file systems.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for store in [Store::Disk, Store::Tmpfs] {
        let area = bench.area(store)?;
        area.make_file("cached", bench.pace.file_size)?;
        let through = open(&area.mount.join("cached"), false)?;
        let mut usrbio = Usrbio::new(bench.capi()?, &area.mount, through, 1, PAGE, Direction::Read)?;
        let plain = open(&area.plain_mount.join("cached"), false)?;
        let mut pread = Positioned::new(plain, 1, PAGE, Direction::Read);
        let mut pattern = Pattern::random(bench.pace.file_size, PAGE);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..bench.pace.rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    ours.push(times(&mut usrbio, &mut pattern, bench.pace.slice)?);
                } else {
                    theirs.push(times(&mut pread, &mut pattern, bench.pace.slice)?);
                }
            }
        }
        for percent in [50.0, 99.0] {
            let of = |rounds: &[Vec<f64>]| -> Vec<f64> {
                rounds.iter().map(|times| percentile(times, percent)).collect()
            };
            let line = Comparison {
                case: format!("latency of one 4 KiB read, {}, cached", area.name),
                what: format!("USRBIO, batch 1, p{percent:.0}"),
                against: "pread, no passthrough".into(),
                unit: "µs",
                scale: 1e6,
                target: None,
            };
            report.add(line.of_times(&of(&ours), &of(&theirs)));
        }
    }
    Ok(())
}

/// The seconds that each request of a slice took.
fn times(contender: &mut dyn Contender, pattern: &mut Pattern, slice: Duration) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(1 << 20);
    let start = Instant::now();
    let mut before = start;
    while before.duration_since(start) < slice {
        contender.run(&[pattern.next_offset()])?;
        let now = Instant::now();
        times.push(now.duration_since(before).as_secs_f64());
        before = now;
    }
    Ok(times)
}
