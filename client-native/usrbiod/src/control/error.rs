//! What the control socket answers when it refuses.

use super::message::{MAX_FDS, MAX_MESSAGE};
use crate::types::Errno;
use serde::{Deserialize, Serialize};

/// A refusal. Its text is one sentence that says what to do; programs look at [`code`](Refusal::code).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Refusal {
    #[error("only root may use the control socket, and uid {uid} asked: connect as root")]
    NotAllowed { uid: u32 },
    #[error("a message holds at most {MAX_MESSAGE} bytes: send several")]
    TooLarge,
    #[error("the message is no JSON object ({reason}): send one object a message")]
    NotJson { reason: String },
    #[error("there is no op `{op}`: hello lists those of this version")]
    UnknownOp { op: String },
    #[error("{reason}: this version knows no more fields")]
    UnknownField { reason: String },
    #[error("{reason}: see CONTROL.md for the fields of this op")]
    InvalidField { reason: String },
    #[error("the op needs {needed} fds and the message has {got}: pass the missing ones by SCM_RIGHTS")]
    MissingFds { needed: usize, got: usize },
    #[error(
        "the op takes {taken} fds (no message over {MAX_FDS}) and the message has {got}: leave the others out"
    )]
    TooManyFds { taken: usize, got: usize },
    #[error("the fd `{name}` is not a directory: open it with O_DIRECTORY")]
    NotADirectory { name: &'static str },
    #[error("the fd `fuse` is not /dev/fuse (character device 10:229): open that")]
    NotFuse,
    #[error("the fd `fuse` has no live mount: mount with it first, and attach while the mount is there")]
    NotMounted,
    #[error("`{name}` is no {what}: use {rule}")]
    InvalidName { what: &'static str, name: String, rule: &'static str },
    #[error("session {session} is attached already: detach it first, or attach under another name")]
    SessionExists { session: String },
    #[error("there is no session {session}: list shows those that are attached")]
    SessionUnknown { session: String },
    #[error("there is no state of session {session} to resume: mount anew, and attach without resume")]
    NoState { session: String },
    #[error(
        "the state of session {session} cannot be taken over: {why}; detach with the version that wrote it, or mount anew"
    )]
    StateVersion { session: String, why: String },
    #[error(
        "another daemon serves the folder of session {session}, or one above it or inside it, and neither would know \
         the other's locks: stop the other one, or mount what it has mounted"
    )]
    FolderServed { session: String },
    #[error("the daemon is draining and takes no sessions: attach to its successor")]
    Draining,
    #[error("this connection carries keep events: ask on another one")]
    IsKeeper,
    #[error("the daemon has a defect and did not finish: report what its log says")]
    Panicked,
    #[error("{what} of session {session}: {errno}; the daemon's log says more")]
    Failed { what: &'static str, session: String, errno: Errno },
    #[error("{what} make no progress: the daemon has a defect, start it anew and report what its log says")]
    Stuck { what: &'static str },
    #[error("the state directory cannot be read: {errno}")]
    Unlisted { errno: Errno },
    #[error(
        "session {session} is being attached or detached by another request: ask again when that is done"
    )]
    SessionBusy { session: String },
    #[error(
        "{what} still run after {seconds} s, and the daemon goes on as before: ask again, or look into the backing storage"
    )]
    Busy { what: String, seconds: u64 },
    #[error("another daemon still serves session {session}: drain it, or wait for its end, and ask again")]
    StillServed { session: String },
    #[error("requests of session {session} still run: ask again, or look into its backing storage")]
    StillRunning { session: String },
}

impl Refusal {
    /// The stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NotAllowed { .. } => "not-allowed",
            Refusal::TooLarge => "too-large",
            Refusal::NotJson { .. } => "not-json",
            Refusal::UnknownOp { .. } => "unknown-op",
            Refusal::UnknownField { .. } => "unknown-field",
            Refusal::InvalidField { .. } => "invalid-field",
            Refusal::MissingFds { .. } => "missing-fds",
            Refusal::TooManyFds { .. } => "too-many-fds",
            Refusal::NotADirectory { .. } => "not-a-directory",
            Refusal::NotFuse => "not-fuse",
            Refusal::NotMounted => "not-mounted",
            Refusal::InvalidName { .. } => "invalid-name",
            Refusal::SessionExists { .. } => "session-exists",
            Refusal::SessionUnknown { .. } => "session-unknown",
            Refusal::NoState { .. } => "no-state",
            Refusal::StateVersion { .. } => "state-version",
            Refusal::FolderServed { .. } => "folder-served",
            Refusal::Draining => "draining",
            Refusal::IsKeeper => "is-keeper",
            Refusal::Panicked | Refusal::Stuck { .. } | Refusal::Failed { .. } | Refusal::Unlisted { .. } => {
                "failed"
            }
            Refusal::SessionBusy { .. }
            | Refusal::Busy { .. }
            | Refusal::StillServed { .. }
            | Refusal::StillRunning { .. } => "busy",
        }
    }
}

/// A refusal on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// See [`Refusal::code`].
    pub code: String,
    /// One sentence that says what to do.
    pub message: String,
}

impl From<&Refusal> for ErrorBody {
    fn from(refusal: &Refusal) -> ErrorBody {
        ErrorBody { code: refusal.code().to_owned(), message: refusal.to_string() }
    }
}
