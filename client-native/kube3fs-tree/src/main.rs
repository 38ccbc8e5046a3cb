//! `kube3fs-tree`: walks over a tree that somebody else owns and may be changing. Started by the node plugin, with the
//! trees as open directories.
//!
//! Stdout is one JSON object a line: how far it is (`entries`, `directories`, `bytes`, `total`), at the end
//! `{"done": ...}` or `{"errno": ..., "error": "..."}` and exit status 1. When nobody reads it any more, it ends.

use kube3fs_tree::meter::{self, Bounds, Meter, Tally};
use kube3fs_tree::sandbox::{self, Access};
use kube3fs_tree::{Failure, copy, count, group, place, remove};
use rustix::io::{Errno, FdFlags};
use rustix::thread::CapabilitySet;
use serde::Serialize;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: kube3fs-tree copy SOURCE TARGET
       kube3fs-tree remove|count TREE SECONDS
       kube3fs-tree group TREE GID
SOURCE, TARGET and TREE are numbers of open directories.";

/// What every walk needs: trees belong to anybody.
const CAPABILITIES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER);

/// To give files to whoever owns the originals; the last two for extended attributes that are not the user's.
const TO_COPY: CapabilitySet = CAPABILITIES
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

const TO_HAND_OVER: CapabilitySet = CAPABILITIES.union(CapabilitySet::CHOWN).union(CapabilitySet::FSETID);

/// How much later than others a walk gets the processor that nobody waits for.
const NICE: i32 = 5;

/// What a walk found or did.
#[derive(Serialize)]
#[serde(untagged)]
enum Done {
    Walked(Tally),
    Counted { bytes: u64, inodes: u64, complete: bool },
}

#[derive(Serialize)]
struct Succeeded {
    done: Done,
}

#[derive(Serialize)]
struct Failed {
    errno: i32,
    error: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(done) = run(&parsed) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (told, code) = match done {
        Ok(done) => (meter::write_line(std::io::stdout(), &Succeeded { done }), ExitCode::SUCCESS),
        Err(failure) => {
            let failed = Failed { errno: failure.errno.raw_os_error(), error: failure.to_string() };
            (meter::write_line(std::io::stdout(), &failed), ExitCode::FAILURE)
        }
    };
    if told.is_err() { ExitCode::FAILURE } else { code }
}

/// `None`: the command line is none of ours.
fn run(arguments: &[&str]) -> Option<Result<Done, Failure>> {
    Some(match arguments {
        ["copy", source, target] => run_copy(tree(source)?, tree(target)?),
        ["remove", tree_, seconds] => run_remove(tree(tree_)?, seconds.parse().ok()?),
        ["count", tree_, seconds] => run_count(tree(tree_)?, seconds.parse().ok()?),
        ["group", tree_, gid] => run_group(tree(tree_)?, gid.parse().ok()?),
        _ => return None,
    })
}

fn run_copy(source: OwnedFd, target: OwnedFd) -> Result<Done, Failure> {
    prepare()?;
    let [source, target] = sandbox::enter([(source, Access::Read), (target, Access::Write)], TO_COPY)?;
    let bounds = Bounds::of(&source, None);
    walked(bounds, |meter| copy::copy(&source, &target, meter))
}

fn run_remove(tree: OwnedFd, seconds: u64) -> Result<Done, Failure> {
    prepare()?;
    stay_behind()?;
    let [tree] = sandbox::enter([(tree, Access::Write)], CAPABILITIES)?;
    let most = Tally { entries: u64::MAX, directories: u64::MAX, bytes: u64::MAX };
    walked(Bounds { most, until: in_seconds(seconds) }, |meter| remove::empty(&tree, meter))
}

fn run_count(tree: OwnedFd, seconds: u64) -> Result<Done, Failure> {
    prepare()?;
    stay_behind()?;
    let [tree] = sandbox::enter([(tree, Access::Read)], CAPABILITIES)?;
    let mut usage = count::Usage::default();
    let mut out = std::io::stdout();
    let mut meter = Meter::new(Bounds::of(&tree, in_seconds(seconds)), &mut out);
    let complete = match count::count(&tree, &mut meter, &mut usage) {
        Ok(()) => true,
        Err(Failure { errno: Errno::TIME | Errno::AGAIN, .. }) => false,
        Err(failure) => return Err(failure),
    };
    Ok(Done::Counted { bytes: usage.bytes(), inodes: usage.inodes(), complete })
}

fn run_group(tree: OwnedFd, gid: u32) -> Result<Done, Failure> {
    prepare()?;
    let [tree] = sandbox::enter([(tree, Access::Write)], TO_HAND_OVER)?;
    walked(Bounds::of(&tree, None), |meter| group::give(&tree, gid, meter))
}

fn walked(
    bounds: Bounds,
    walk: impl FnOnce(&mut Meter<'_>) -> kube3fs_tree::Result<()>,
) -> Result<Done, Failure> {
    let mut out = std::io::stdout();
    let mut meter = Meter::new(bounds, &mut out);
    walk(&mut meter)?;
    Ok(Done::Walked(meter.tally))
}

/// Deep walks take turns by a lock on the program itself, which all of them have.
fn prepare() -> Result<(), Failure> {
    let program = File::open("/proc/self/exe").map_err(|error| Failure {
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        doing: "opening itself".into(),
    })?;
    place::take_turns(program.into());
    Ok(())
}

fn stay_behind() -> Result<(), Failure> {
    let lowered =
        rustix::process::setpriority_process(None, NICE).and_then(|()| kube3fs_tree::lower_io_priority());
    lowered.map_err(|errno| Failure { errno, doing: "lowering its priority".into() })
}

fn in_seconds(seconds: u64) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_secs(seconds))
}

/// The directory that the caller has opened as this number, to be ours alone.
fn tree(number: &str) -> Option<OwnedFd> {
    let number: RawFd = number.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: the caller opened it for us, and nothing else here knows the number; it is looked at before it is used.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).ok().map(|()| fd)
}
