//! The messages of the control socket. CONTROL.md shows them as JSON.

use super::error::{ErrorBody, Refusal};
use crate::metrics::{Latency, Rejected, SessionMetrics};
use crate::session::{Limits, SessionConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Bytes of the longest message.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Most fds of one message: what the kernel allows (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Most fds that the daemon puts into one message of `fds`.
pub const FDS_PER_REPLY: usize = 200;

/// Version of this protocol. A field or an op may be added without a new one; a peer looks at `ops` of hello.
pub const PROTOCOL: u32 = 1;

/// What a peer asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Who is there, and what can it do?
    Hello,
    /// Serve a mount.
    Attach(Attach),
    /// Stop to serve it.
    Detach(Named),
    /// All sessions.
    List,
    /// Numbers of one session.
    Stats(Named),
    /// The volume of a session has grown, or was measured.
    Space(SetSpace),
    /// Remove the states of sessions that are no more.
    Prune(Prune),
    /// Finish what runs and take nothing new.
    Drain,
    /// Make this connection the keeper's.
    Keep,
    /// Kept fds come back.
    Give(Give),
    /// Every fd of every session, please.
    Fds,
    /// Does everything that serves make progress?
    Health,
}

/// `attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// What the session is to be.
    pub config: SessionConfig,
    /// What the fds of the message are, in their order.
    pub fds: Vec<FdRole>,
    /// Go on where a dead daemon stopped.
    #[serde(default)]
    pub resume: bool,
}

/// What an fd of `attach` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FdRole {
    /// An open and mounted `/dev/fuse`.
    Fuse,
    /// The directory that is served.
    Backing,
    /// The directory that clients see as `/dev/shm`.
    Shm,
}

/// The ops that only name a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub session: String,
}

/// `space`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSpace {
    /// Its session.
    pub session: String,
    /// Bytes of the volume; 0 for those of the backing file system.
    pub total: u64,
    /// Bytes of these in use.
    #[serde(default)]
    pub used: u64,
}

/// `prune`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// Those that still exist, besides what is attached.
    pub sessions: BTreeSet<String>,
}

/// `give`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Give {
    /// The session that will be attached on this connection.
    pub session: String,
    /// The keys of the fds of the message, in their order.
    pub keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// The ops that [`parse`] knows.
pub const OPS: [&str; 12] = [
    "hello", "attach", "detach", "list", "stats", "space", "prune", "drain", "keep", "give", "fds", "health",
];

/// Parses a message. Whatever comes of it, the `id` goes into the reply, if it could be read.
pub fn parse(bytes: &[u8]) -> (Option<u64>, Result<Request, Refusal>) {
    let mut fields: Map<String, Value> = match serde_json::from_slice(bytes) {
        Ok(fields) => fields,
        Err(e) => return (None, Err(Refusal::NotJson { reason: e.to_string() })),
    };
    let id = match fields.remove("id") {
        None => None,
        Some(value) => match value.as_u64() {
            Some(id) => Some(id),
            None => return (None, Err(invalid("`id` is no number from 0 to 2^64-1"))),
        },
    };
    (id, parse_op(fields))
}

fn parse_op(mut fields: Map<String, Value>) -> Result<Request, Refusal> {
    let Some(Value::String(op)) = fields.remove("op") else {
        return Err(invalid("`op` is missing or no string"));
    };
    let nothing = |request, fields| parse_fields(fields).map(|Nothing {}| request);
    match op.as_str() {
        "hello" => nothing(Request::Hello, fields),
        "attach" => parse_fields(fields).map(Request::Attach),
        "detach" => parse_fields(fields).map(Request::Detach),
        "list" => nothing(Request::List, fields),
        "stats" => parse_fields(fields).map(Request::Stats),
        "space" => parse_fields(fields).map(Request::Space),
        "prune" => parse_fields(fields).map(Request::Prune),
        "drain" => nothing(Request::Drain, fields),
        "keep" => nothing(Request::Keep, fields),
        "give" => parse_fields(fields).map(Request::Give),
        "fds" => nothing(Request::Fds, fields),
        "health" => nothing(Request::Health, fields),
        _ => Err(Refusal::UnknownOp { op: op.chars().take(64).collect() }),
    }
}

fn parse_fields<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Refusal> {
    serde_json::from_value(Value::Object(fields)).map_err(|e| {
        let reason = e.to_string();
        // serde has no kind for it; the words are part of its API (`Error::unknown_field`).
        if reason.starts_with("unknown field") {
            Refusal::UnknownField { reason }
        } else {
            Refusal::InvalidField { reason }
        }
    })
}

fn invalid(reason: &str) -> Refusal {
    Refusal::InvalidField { reason: reason.to_owned() }
}

/// A reply. Those of `list` and `fds` come in several messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Was it done?
    pub ok: bool,
    /// The request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Another message follows for the same request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// What the op answers.
    #[serde(flatten)]
    pub body: Map<String, Value>,
}

impl Reply {
    /// The reply to a request that was carried out.
    pub fn done(body: &impl Serialize) -> Reply {
        let body = match serde_json::to_value(body) {
            Ok(Value::Object(body)) => body,
            _ => Map::new(),
        };
        Reply { ok: true, id: None, more: false, error: None, body }
    }

    /// The reply to a request that was refused.
    pub fn refused(refusal: &Refusal) -> Reply {
        Reply { ok: false, id: None, more: false, error: Some(refusal.into()), body: Map::new() }
    }
}

/// What the daemon says unasked, on the keeper's connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// Keep the fd of this message.
    Keep {
        /// Its session.
        session: String,
        /// Unique in the session.
        key: String,
    },
    /// Close that fd.
    Forget {
        /// Its session.
        session: String,
        /// As kept.
        key: String,
    },
    /// The session is over: close all its fds.
    Detached {
        /// Its name.
        session: String,
        /// The mount went away by itself; nobody asked for `detach`.
        unmounted: bool,
    },
}

/// Body of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the daemon.
    pub version: String,
    /// Version of this protocol.
    pub protocol: u32,
    /// Its process id, in its own pid namespace.
    pub pid: u32,
    /// The ops that it knows.
    pub ops: Vec<String>,
    /// It takes no sessions any more.
    pub draining: bool,
    /// Number of sessions.
    pub sessions: usize,
    /// Requests that hang, of all sessions.
    #[serde(default)]
    pub hung: u64,
    /// What the kernel can do.
    pub kernel: Kernel,
}

/// What the kernel can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// New enough for FUSE passthrough (6.9). Whether a mount has it is in its `stats`.
    pub passthrough: bool,
    /// New enough for `FUSE_NOTIFY_RESEND` (6.9): without it a successor loses requests that were being worked on.
    pub resend: bool,
    /// New enough to map FUSE mounts into user namespaces (6.12).
    pub idmap: bool,
    /// io_uring can be used here; a seccomp profile may forbid it.
    pub io_uring: bool,
}

/// A session in `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub session: String,
    /// As attached.
    pub cluster: String,
    /// As attached.
    pub mount_point: PathBuf,
    /// As attached.
    pub read_only: bool,
    /// The kernel reads and writes backing files itself.
    pub passthrough: bool,
    /// Rings registered.
    pub rings: u64,
    /// Iovs registered.
    pub iovs: u64,
    /// Bytes of these Iovs.
    pub iov_bytes: u64,
    /// Requests that hang: their storage has not answered for some seconds.
    #[serde(default)]
    pub hung: u64,
    /// Age of the oldest of these.
    #[serde(default)]
    pub hung_seconds: u64,
}

/// Body of `stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// As in `list`.
    #[serde(flatten)]
    pub session: Listed,
    /// What it may use.
    pub limits: Limits,
    /// Ring requests completed.
    pub ring: Traffic,
    /// FUSE requests answered; `requests` has no direction here.
    pub fuse: Traffic,
    /// Ring requests refused, by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// Numbers of one way into the session.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests completed.
    pub requests: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Their mean duration (of a ring: of a batch).
    pub mean_seconds: f64,
}

impl Stats {
    /// The numbers of a session now.
    pub fn new(session: Listed, limits: Limits, metrics: &SessionMetrics) -> Stats {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mean = |latency: &Latency| match latency.count() {
            0 => 0.0,
            count => load(&latency.sum_ns) as f64 / 1e9 / count as f64,
        };
        let reasons = Rejected::NAMES.iter().zip(&metrics.rejected);
        Stats {
            session,
            limits,
            ring: Traffic {
                requests: load(&metrics.ring_reads) + load(&metrics.ring_writes),
                read_bytes: load(&metrics.ring_read_bytes),
                write_bytes: load(&metrics.ring_write_bytes),
                mean_seconds: mean(&metrics.ring_latency),
            },
            fuse: Traffic {
                requests: load(&metrics.fuse_requests),
                read_bytes: load(&metrics.fuse_read_bytes),
                write_bytes: load(&metrics.fuse_write_bytes),
                mean_seconds: mean(&metrics.fuse_latency),
            },
            rejected: reasons.map(|(name, count)| ((*name).to_owned(), load(count))).collect(),
        }
    }
}
