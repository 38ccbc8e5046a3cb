//! How far a walk has come, how far it may go, and telling so.

use crate::error::{Failure, Result};
use rustix::io::Errno;
use serde::Serialize;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_millis(250);

/// Directories that may be met over and above twice the inodes of the file system.
const SOME: u64 = 1 << 16;

/// What a walk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Names that were met.
    pub entries: u64,
    /// Directories among them.
    pub directories: u64,
    /// Bytes that were copied.
    pub bytes: u64,
}

/// Where a walk ends with an error.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `EAGAIN` beyond it: the tree changes faster than it is walked.
    pub most: Tally,
    /// `ETIME` from then on.
    pub until: Option<Instant>,
}

impl Bounds {
    /// For a tree that is there: a directory has one name, so that no tree has more of them than its file system has
    /// inodes. A walk that meets twice as many is led around in circles.
    pub fn of(root: impl AsFd, until: Option<Instant>) -> Self {
        let inodes =
            rustix::fs::fstatvfs(root).map_or(0, |found| found.f_files.saturating_sub(found.f_ffree));
        let directories = if inodes == 0 { u64::MAX } else { inodes.saturating_mul(2).saturating_add(SOME) };
        Self { most: Tally { entries: u64::MAX, directories, bytes: u64::MAX }, until }
    }
}

/// See the module. Each line that it writes is an object of JSON; when nobody reads them any more, the walk ends.
pub struct Meter<'a> {
    /// What was done so far.
    pub tally: Tally,
    /// How far it may go.
    pub bounds: Bounds,
    /// What there is to do, where that is known.
    pub total: Option<Tally>,
    out: &'a mut dyn Write,
    tell_at: Instant,
}

#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    done: Tally,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Tally>,
}

impl<'a> Meter<'a> {
    /// Tells `out`.
    pub fn new(bounds: Bounds, out: &'a mut dyn Write) -> Self {
        Self { tally: Tally::default(), bounds, total: None, out, tell_at: Instant::now() + TOLD_EVERY }
    }

    /// Counts a name, unless that is one too many.
    pub fn entry(&mut self, is_directory: bool) -> Result<()> {
        self.tally.entries += 1;
        self.tally.directories += u64::from(is_directory);
        self.look()
    }

    /// Counts bytes, unless those are too many.
    pub fn bytes(&mut self, more: u64) -> Result<()> {
        self.tally.bytes = self.tally.bytes.saturating_add(more);
        self.look()
    }

    fn look(&mut self) -> Result<()> {
        let (done, most) = (self.tally, self.bounds.most);
        if done.entries > most.entries || done.directories > most.directories || done.bytes > most.bytes {
            let doing = "following a tree that changes faster than it can be walked".to_owned();
            return Err(Failure { errno: Errno::AGAIN, doing });
        }
        let now = Instant::now();
        if self.bounds.until.is_some_and(|until| now >= until) {
            return Err(Failure { errno: Errno::TIME, doing: format!("walking {} names", done.entries) });
        }
        if now >= self.tell_at {
            self.tell_at = now + TOLD_EVERY;
            self.tell()?;
        }
        Ok(())
    }

    fn tell(&mut self) -> Result<()> {
        let told = Told { done: self.tally, total: self.total };
        write_line(&mut *self.out, &told)
    }
}

/// Writes a line of JSON at once.
pub fn write_line(mut out: impl Write, line: &impl Serialize) -> Result<()> {
    let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut text| {
        text.push(b'\n');
        out.write_all(&text)?;
        out.flush()
    });
    written.map_err(|error| Failure {
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        doing: "telling how far it is".to_owned(),
    })
}
