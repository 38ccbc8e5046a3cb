//! The table a person reads and the JSON a script reads.

use std::io::{self, Write};

use serde::Serialize;

use crate::machine::Machine;
use crate::stats::{median, ratios};

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    rounds: usize,
    slice_ms: u128,
    ratios: Vec<Ratio>,
    limits: Vec<Limit>,
    skipped: Vec<Note>,
    failed: Vec<Note>,
}

/// Two sides measured in the same rounds.
#[derive(Debug, Serialize)]
pub struct Ratio {
    case: String,
    what: String,
    against: String,
    unit: &'static str,
    ours: f64,
    theirs: f64,
    /// Median over the rounds of how much better ours is; above 1, ours is better, whatever the unit.
    ratio: f64,
    lowest: f64,
    highest: f64,
    target: Option<f64>,
    met: Option<bool>,
}

/// A value that must stay below a limit.
#[derive(Debug, Serialize)]
pub struct Limit {
    case: String,
    what: String,
    unit: &'static str,
    value: f64,
    limit: f64,
    met: bool,
}

#[derive(Debug, Serialize)]
struct Note {
    case: String,
    reason: String,
}

/// What is compared, and what is asked of it.
pub struct Comparison {
    /// The heading it stands under.
    pub case: String,
    /// Ours.
    pub what: String,
    /// Theirs.
    pub against: String,
    /// Of the values in the table.
    pub unit: &'static str,
    /// Values are multiplied by this for the table.
    pub scale: f64,
    /// The least ratio that is good enough.
    pub target: Option<f64>,
}

impl Comparison {
    /// More is better.
    pub fn of_rates(self, ours: &[f64], theirs: &[f64]) -> Ratio {
        let ratios = ratios(ours, theirs);
        self.finish(ours, theirs, &ratios)
    }

    /// Less is better.
    pub fn of_times(self, ours: &[f64], theirs: &[f64]) -> Ratio {
        let ratios = ratios(theirs, ours);
        self.finish(ours, theirs, &ratios)
    }

    fn finish(self, ours: &[f64], theirs: &[f64], ratios: &[f64]) -> Ratio {
        let ratio = median(ratios);
        Ratio {
            case: self.case,
            what: self.what,
            against: self.against,
            unit: self.unit,
            ours: median(ours) * self.scale,
            theirs: median(theirs) * self.scale,
            ratio,
            lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            highest: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            target: self.target,
            met: self.target.map(|target| ratio >= target),
        }
    }
}

impl Limit {
    /// `value` must not exceed `limit`.
    pub fn new(case: &str, what: &str, unit: &'static str, value: f64, limit: f64) -> Self {
        Self { case: case.into(), what: what.into(), unit, value, limit, met: value <= limit }
    }
}

impl Report {
    /// An empty report; the heading is printed at once.
    pub fn new(machine: Machine, rounds: usize, slice_ms: u128) -> Self {
        println!("{machine}");
        println!(
            "Each line: medians of {rounds} rounds of {slice_ms} ms that alternate between both sides. Ratio: how many \
             times better ours is; rounds: [lowest, highest] ratio of one."
        );
        Self { machine, rounds, slice_ms, ratios: vec![], limits: vec![], skipped: vec![], failed: vec![] }
    }

    /// Adds and prints comparisons.
    pub fn add(&mut self, ratio: Ratio) {
        if self.ratios.last().is_none_or(|last| last.case != ratio.case) {
            println!("\n{}", ratio.case);
            println!(
                "  {:<23} {:<25} {:>9} {:>9} {:<7} {:>6} {:>15}   target",
                "what", "against", "ours", "theirs", "", "ratio", "rounds"
            );
        }
        let verdict = match (ratio.target, ratio.met) {
            (Some(target), Some(met)) => {
                format!("≥{target:<5} {}", if met { "ok" } else { "MISS" })
            }
            _ => String::new(),
        };
        let spread = format!("[{:.2}, {:.2}]", ratio.lowest, ratio.highest);
        println!(
            "  {:<23} {:<25} {:>9.1} {:>9.1} {:<7} {:>5.2}x {spread:>15}   {verdict}",
            ratio.what, ratio.against, ratio.ours, ratio.theirs, ratio.unit, ratio.ratio,
        );
        self.ratios.push(ratio);
        let _ = io::stdout().flush();
    }

    /// Adds and prints a value with a limit.
    pub fn add_limit(&mut self, limit: Limit) {
        if self.limits.last().is_none_or(|last| last.case != limit.case) {
            println!("\n{}", limit.case);
        }
        let verdict = if limit.met { "ok" } else { "MISS" };
        println!("  {:<49} {:>9.2} {:<7} ≤{:<5} {verdict}", limit.what, limit.value, limit.unit, limit.limit);
        self.limits.push(limit);
        let _ = io::stdout().flush();
    }

    /// Says why a case was not run.
    pub fn skip(&mut self, case: &str, reason: String) {
        println!("\n{case}: SKIPPED: {reason}");
        self.skipped.push(Note { case: case.into(), reason });
    }

    /// Says why a case has no result.
    pub fn fail(&mut self, case: &str, error: &anyhow::Error) {
        println!("\n{case}: FAILED: {error:#}");
        self.failed.push(Note { case: case.into(), reason: format!("{error:#}") });
    }

    /// Prints the last line; whether every case ran.
    pub fn finish(&self) -> bool {
        let verdicts =
            self.ratios.iter().filter_map(|line| line.met).chain(self.limits.iter().map(|line| line.met));
        let (met, missed): (Vec<bool>, Vec<bool>) = verdicts.partition(|met| *met);
        println!(
            "\n{} targets met, {} missed, {} cases skipped, {} failed",
            met.len(),
            missed.len(),
            self.skipped.len(),
            self.failed.len()
        );
        self.failed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(target: f64) -> Comparison {
        let text = String::new;
        Comparison { case: text(), what: text(), against: text(), unit: "", scale: 1.0, target: Some(target) }
    }

    #[test]
    fn more_is_better_for_rates_and_less_for_times() {
        let faster = comparison(1.5).of_rates(&[20.0, 20.0], &[10.0, 10.0]);
        assert_eq!((faster.ratio, faster.met), (2.0, Some(true)));
        let slower = comparison(1.5).of_times(&[20.0, 20.0], &[10.0, 10.0]);
        assert_eq!((slower.ratio, slower.met), (0.5, Some(false)));
    }

    #[test]
    fn the_ratio_is_the_median_of_rounds_and_not_the_ratio_of_medians() {
        // The machine was twice as fast in the last round: each round still says 2.
        let line = comparison(2.0).of_rates(&[10.0, 12.0, 40.0], &[5.0, 6.0, 20.0]);
        assert_eq!((line.ratio, line.lowest, line.highest), (2.0, 2.0, 2.0));
    }
}
