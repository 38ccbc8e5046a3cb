//! `bench-native`: what USRBIO and the mount are worth, as ratios of two sides measured side by side in one run.
//!
//! Absolute figures of a shared machine mean little; the ratio of two short rounds that follow each other means much.
//! Every line is the median over several rounds, with its target and whether it was met.

mod capi;
mod cases;
mod contender;
mod duel;
mod fixture;
mod machine;
mod pattern;
mod report;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use cases::CASES;
use cases::clients::{ClientArgs, client};
use fixture::{Bench, Pace, cleanup};
use machine::Machine;
use report::Report;

/// Measures USRBIO and the mount beside native I/O, FUSE without passthrough and libfuse.
///
/// The exit status says whether every case could be run, not whether its target was met.
#[derive(Debug, Parser)]
#[command(name = "bench-native", version, args_conflicts_with_subcommands = true)]
struct Args {
    /// The daemon [default: usrbiod beside this program]
    #[arg(long, value_name = "PATH")]
    usrbiod: Option<PathBuf>,
    /// The client library [default: libusrbio_capi.so beside this program]
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// Where the backing files go (3 GiB, removed at the end); choose the file system to measure
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Write all results here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Less than a minute: shorter rounds, a smaller file
    #[arg(long)]
    quick: bool,
    /// Run this case only (may be repeated)
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(CASES.map(|case| case.name)))]
    only: Vec<String>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// What the case `clients` starts several of.
    #[command(hide = true)]
    Client(ClientArgs),
}

impl Pace {
    const FULL: Self = Self { rounds: 7, slice: Duration::from_millis(400), file_size: 1 << 30 };
    const QUICK: Self = Self { rounds: 5, slice: Duration::from_millis(60), file_size: 256 << 20 };
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.role {
        Some(Role::Client(args)) => client(args).map(|()| true),
        None => run(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-native: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    fixture::isolate()?;
    cleanup::on_signals()?;
    let pace = if args.quick { Pace::QUICK } else { Pace::FULL };
    let bench = Bench::new(
        pace,
        path_or_sibling(args.usrbiod.as_deref(), "usrbiod")?,
        path_or_sibling(args.library.as_deref(), "libusrbio_capi.so")?,
        &args.dir,
    )?;
    let mut report = Report::new(Machine::this(&args.dir)?, pace.rounds, pace.slice.as_millis());
    for case in CASES {
        if !args.only.is_empty() && !args.only.iter().any(|name| name == case.name) {
            continue;
        }
        if let Err(error) = (case.run)(&bench, &mut report) {
            report.fail(case.name, &error);
        }
    }
    let complete = report.finish();
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(complete)
}

fn path_or_sibling(given: Option<&Path>, name: &str) -> Result<PathBuf> {
    match given {
        Some(path) => Ok(path.into()),
        None => Ok(std::env::current_exe()?.with_file_name(name)),
    }
}
