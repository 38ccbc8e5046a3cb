//! Rounds that alternate between contenders, so that a slow moment of the machine hits all of them.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::contender::Contender;
use crate::fixture::{Pace, holds};
use crate::pattern::{self, Pattern};

/// A contender and its rates.
pub struct Entrant {
    name: &'static str,
    contender: Box<dyn Contender>,
    pattern: Pattern,
    /// Requests per second, one value a round.
    pub rates: Vec<f64>,
}

impl Entrant {
    /// `contender`, asked in the order of `pattern`.
    pub fn new(name: &'static str, contender: impl Contender + 'static, pattern: Pattern) -> Self {
        Self { name, contender: Box::new(contender), pattern, rates: Vec::new() }
    }

    /// The name in the report.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// How to see that the data is right.
pub enum Check<'a> {
    /// Buffers hold the words of their offsets.
    Read,
    /// This file holds what the buffers hold.
    Written(&'a File),
}

/// Measures all entrants in every round, in turns forward and backward.
pub fn fight(entrants: &mut [Entrant], batch: usize, pace: Pace, check: &Check<'_>) -> Result<()> {
    for round in 0..=pace.rounds {
        for index in 0..entrants.len() {
            let backward = round % 2 == 1;
            let entrant = &mut entrants[if backward { entrants.len() - 1 - index } else { index }];
            // Round 0 warms up: caches, the branch predictor, lazily made rings.
            let slice = if round == 0 { pace.slice / 10 } else { pace.slice };
            let rate = measure(entrant.contender.as_mut(), &mut entrant.pattern, batch, slice, check)
                .with_context(|| format!("{}, batch {batch}", entrant.name))?;
            if round > 0 {
                entrant.rates.push(rate);
            }
        }
    }
    Ok(())
}

/// Requests per second of one contender over `slice`.
pub fn measure(
    contender: &mut dyn Contender,
    pattern: &mut Pattern,
    batch: usize,
    slice: Duration,
    check: &Check<'_>,
) -> Result<f64> {
    // A clock read every 64 requests or so, a look at the data every 64 batches: neither shows in the figures.
    let clock_every = (64 / batch).max(1);
    let mut offsets = vec![0; batch];
    let mut batches = 0;
    let start = Instant::now();
    let elapsed = loop {
        offsets.fill_with(|| pattern.next_offset());
        contender.run(&offsets)?;
        batches += 1;
        if batches % 64 == 0 {
            check_read(contender, &offsets, check)?;
        }
        if batches % clock_every == 0 {
            let elapsed = start.elapsed();
            if elapsed >= slice {
                break elapsed;
            }
        }
    };
    check_read(contender, &offsets, check)?;
    if let Check::Written(file) = check {
        holds(file, offsets[batch - 1], contender.slot(batch - 1))?;
    }
    Ok((batches * batch) as f64 / elapsed.as_secs_f64())
}

fn check_read(contender: &dyn Contender, offsets: &[u64], check: &Check<'_>) -> Result<()> {
    if let Check::Read = check {
        let last = offsets.len() - 1;
        let right = pattern::matches(contender.slot(last), offsets[last]);
        ensure!(right, "wrong data at offset {}", offsets[last]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::{Direction, Positioned, Streamed, Uring};
    use crate::fixture::{make_file, open};
    use crate::pattern::PAGE;

    const SIZE: u64 = 1 << 20;
    const PACE: Pace = Pace { rounds: 2, slice: Duration::from_millis(5), file_size: SIZE };

    fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        make_file(&path, SIZE).unwrap();
        (dir, path)
    }

    #[test]
    fn native_contenders_read_the_right_data_at_every_batch_size() {
        let (_dir, path) = scratch();
        for batch in [1, 32, 128, 1024] {
            let file = || open(&path, false).unwrap();
            let random = Pattern::random(SIZE, PAGE);
            let mut entrants = [
                Entrant::new("pread", Positioned::new(file(), batch, PAGE, Direction::Read), random.clone()),
                Entrant::new("io_uring", Uring::new(file(), batch, PAGE).unwrap(), random),
                Entrant::new(
                    "read",
                    Streamed::new(file(), batch, PAGE, Direction::Read),
                    Pattern::sequential(SIZE, PAGE),
                ),
            ];
            fight(&mut entrants, batch, PACE, &Check::Read).unwrap();
            assert!(entrants.iter().all(|e| e.rates.len() == 2 && e.rates.iter().all(|rate| *rate > 0.0)));
        }
    }

    #[test]
    fn writes_are_seen_through_another_descriptor() {
        let (_dir, path) = scratch();
        let witness = File::open(&path).unwrap();
        let sequential = Pattern::sequential(SIZE, PAGE);
        let mut entrants = [
            Entrant::new(
                "pwrite",
                Positioned::new(open(&path, false).unwrap(), 4, PAGE, Direction::Write),
                sequential.clone(),
            ),
            Entrant::new(
                "write",
                Streamed::new(open(&path, false).unwrap(), 4, PAGE, Direction::Write),
                sequential,
            ),
        ];
        fight(&mut entrants, 4, PACE, &Check::Written(&witness)).unwrap();
    }

    #[test]
    fn wrong_data_ends_the_measurement() {
        let (_dir, path) = scratch();
        std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
        let pread = Positioned::new(File::open(&path).unwrap(), 1, PAGE, Direction::Read);
        let mut entrants = [Entrant::new("pread", pread, Pattern::random(SIZE, PAGE))];
        let error = fight(&mut entrants, 1, PACE, &Check::Read).unwrap_err();
        assert!(format!("{error:#}").contains("wrong data"), "{error:#}");
    }

    #[test]
    fn a_short_read_ends_the_measurement() {
        let (_dir, path) = scratch();
        let pread = Positioned::new(File::open(&path).unwrap(), 1, PAGE, Direction::Read);
        let mut entrants = [Entrant::new("pread", pread, Pattern::random(1 << 40, PAGE))];
        let error = fight(&mut entrants, 1, PACE, &Check::Read).unwrap_err();
        assert!(format!("{error:#}").contains("returned 0"), "{error:#}");
    }
}
