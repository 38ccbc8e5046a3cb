//! The comparisons, a module each. The targets stand beside what they judge.

pub mod clients;
pub mod direct;
pub mod idle;
pub mod latency;
pub mod metadata;
pub mod posix;
pub mod random;
pub mod sequential;

use anyhow::Result;

use crate::fixture::Bench;
use crate::report::Report;

/// One comparison.
pub struct Case {
    /// What `--only` takes.
    pub name: &'static str,
    /// Measures, and adds lines to the report.
    pub run: fn(&Bench, &mut Report) -> Result<()>,
}

/// All of them, in the order of the report.
pub const CASES: [Case; 8] = [
    Case { name: "random", run: random::run },
    Case { name: "direct", run: direct::run },
    Case { name: "sequential", run: sequential::run },
    Case { name: "posix", run: posix::run },
    Case { name: "latency", run: latency::run },
    Case { name: "clients", run: clients::run },
    Case { name: "idle", run: idle::run },
    Case { name: "metadata", run: metadata::run },
];
