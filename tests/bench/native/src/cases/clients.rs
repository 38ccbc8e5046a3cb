//! Rings of several processes at once: together they must not get less than one of them alone.

use std::io::{BufRead, BufReader, Write, stdin};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::capi::Capi;
use crate::contender::{Direction, Usrbio};
use crate::duel::{Check, measure};
use crate::fixture::{Area, Bench, Store, open};
use crate::pattern::{PAGE, Pattern};
use crate::report::{Comparison, Report};

const COUNTS: [usize; 4] = [1, 2, 4, 8];
const BATCH: usize = 128;
const TARGET: f64 = 0.9;

/// Runs the case on the disk.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let area = bench.area(Store::Disk)?;
    area.make_file("cached", bench.pace.file_size)?;
    let mut rates = COUNTS.map(|_| Vec::new());
    for round in 0..bench.pace.rounds {
        for turn in 0..COUNTS.len() {
            let index = if round % 2 == 0 { turn } else { COUNTS.len() - 1 - turn };
            rates[index].push(total(bench, &area, COUNTS[index])?);
        }
    }
    for (count, total) in COUNTS.iter().zip(&rates).skip(1) {
        let line = Comparison {
            case: format!("several client processes, batch {BATCH}, {}, cached", area.name),
            what: format!("{count} clients, together"),
            against: "1 client".into(),
            unit: "kIOPS",
            scale: 1e-3,
            target: Some(TARGET),
        };
        report.add(line.of_rates(total, &rates[0]));
    }
    Ok(())
}

/// Requests per second of `count` clients that start at the same moment.
fn total(bench: &Bench, area: &Area, count: usize) -> Result<f64> {
    let clients: Vec<Client> =
        (0..count).map(|seed| Client::start(bench, area, seed)).collect::<Result<_>>()?;
    let mut ready: Vec<Client> = clients.into_iter().map(Client::ready).collect::<Result<_>>()?;
    ready.iter_mut().try_for_each(Client::go)?;
    ready.into_iter().map(Client::rate).sum()
}

/// A child process with a ring of its own.
struct Client {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn start(bench: &Bench, area: &Area, seed: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("client").arg(&bench.library).arg(&area.mount).arg(area.mount.join("cached"));
        command.arg(bench.pace.slice.as_millis().to_string()).arg(seed.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child, said })
    }

    fn ready(mut self) -> Result<Self> {
        ensure!(self.line()? == "ready", "a client could not start");
        Ok(self)
    }

    fn go(&mut self) -> Result<()> {
        Ok(self.child.stdin.as_mut().context("no pipe")?.write_all(b"go\n")?)
    }

    fn rate(mut self) -> Result<f64> {
        let rate = self.line()?.parse().context("a client failed")?;
        ensure!(self.child.wait()?.success(), "a client failed");
        Ok(rate)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client process is told.
#[derive(Debug, Args)]
pub struct ClientArgs {
    library: PathBuf,
    mount: PathBuf,
    file: PathBuf,
    millis: u64,
    seed: u64,
}

/// The whole of a client process: says `ready`, waits for a line, measures, says its rate.
pub fn client(args: &ClientArgs) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let capi = Rc::new(Capi::load(&args.library)?);
    let size = Path::new(&args.file).metadata()?.len();
    let file = open(&args.file, false)?;
    let mut usrbio = Usrbio::new(capi, &args.mount, file, BATCH, PAGE, Direction::Read)?;
    let mut pattern = Pattern::random(size, PAGE).seeded(args.seed);
    println!("ready");
    let mut go = String::new();
    stdin().read_line(&mut go)?;
    // Standard input at its end: the parent is gone.
    if !go.is_empty() {
        let slice = Duration::from_millis(args.millis);
        println!("{}", measure(&mut usrbio, &mut pattern, BATCH, slice, &Check::Read)?);
    }
    Ok(())
}
