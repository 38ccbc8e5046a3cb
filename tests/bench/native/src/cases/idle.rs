//! What idle pods cost: many sessions, a ring in each, nobody doing anything.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;

use crate::contender::IdleRing;
use crate::fixture::Bench;
use crate::fixture::control::Control;
use crate::fixture::server::Process;
use crate::machine::field;
use crate::report::{Limit, Report};

const SESSIONS: usize = 100;
const RING_ENTRIES: usize = 128;

const MOST_MIB: f64 = 24.0;
const MOST_THREADS_BESIDE_CORES: usize = 4;
const MOST_CPU_PERCENT: f64 = 0.5;

/// How long the daemon is watched.
const WATCH: Duration = Duration::from_secs(5);

/// How long workers that the attaching needed may stay.
const SETTLE: Duration = Duration::from_secs(15);

/// Runs the case.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.work().join("idle");
    let [backing, state] = ["backing", "state"].map(|name| dir.join(name));
    std::fs::create_dir_all(&backing)?;
    std::fs::create_dir_all(&state)?;
    let socket = dir.join("socket");
    let mut command = Command::new(&bench.usrbiod);
    command.arg("daemon").arg("--socket").arg(&socket).arg("--state-dir").arg(&state);
    let daemon = Process::start(command, &dir.join("log"))?;
    daemon.wait_until("the daemon does not listen", || Control::connect(&socket).is_ok())?;

    let control = Control::connect(&socket)?;
    let mut mounts = Vec::new();
    let mut rings = Vec::new();
    for index in 0..SESSIONS {
        let name = format!("session-{index}");
        let target = dir.join(&name);
        std::fs::create_dir(&target)?;
        mounts.push(control.attach(&name, &backing, &target)?);
        rings.push(IdleRing::new(bench.capi()?, &target, RING_ENTRIES).with_context(|| name)?);
    }

    let most_threads = (std::thread::available_parallelism()?.get() + MOST_THREADS_BESIDE_CORES) as f64;
    let deadline = Instant::now() + SETTLE;
    while status(daemon.pid, "Threads")? > most_threads && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = (Instant::now(), cpu_time(daemon.pid)?);
    std::thread::sleep(WATCH);
    let busy = cpu_time(daemon.pid)?.saturating_sub(before.1);
    let percent = busy.as_secs_f64() / before.0.elapsed().as_secs_f64() * 100.0;

    let case = format!("{SESSIONS} idle sessions with a ring each, one daemon");
    let mib = |key| Ok::<f64, anyhow::Error>(status(daemon.pid, key)? / 1024.0);
    let [own, files, shared] = [mib("RssAnon")?, mib("RssFile")?, mib("RssShmem")?];
    let resident = format!("resident: {own:.1} own, {files:.1} files, {shared:.1} shared");
    report.add_limit(Limit::new(&case, &resident, "MiB", mib("VmRSS")?, MOST_MIB));
    report.add_limit(Limit::new(&case, "threads", "", status(daemon.pid, "Threads")?, most_threads));
    report.add_limit(Limit::new(&case, "CPU", "%", percent, MOST_CPU_PERCENT));
    Ok(())
}

/// A number in /proc/PID/status.
fn status(pid: Pid, key: &str) -> Result<f64> {
    let value =
        field(proc(pid, "status"), key).with_context(|| format!("the daemon has no {key}: did it end?"))?;
    Ok(value.trim_end_matches(" kB").parse()?)
}

/// Time on a processor so far, of all threads that are or were. Finer than the clock ticks of /proc/PID/stat.
fn cpu_time(pid: Pid) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: writes one clock id.
    let status = unsafe { libc::clock_getcpuclockid(pid.as_raw_nonzero().get(), &mut clock) };
    ensure!(status == 0, "no CPU clock of the daemon: {}", io::Error::from_raw_os_error(status));
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    let status = unsafe { libc::clock_gettime(clock, &mut time) };
    ensure!(status == 0, "cannot read the CPU clock of the daemon: {}", io::Error::last_os_error());
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn proc(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}
