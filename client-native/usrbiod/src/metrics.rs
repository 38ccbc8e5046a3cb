//! Counters and histograms, in the OpenMetrics text format.

use std::sync::atomic::AtomicU64;

/// Counters of one session. They are plain atomics: the data path must not take a lock to count.
#[derive(Debug, Default)]
pub struct SessionMetrics {
    /// Ring requests completed, reads.
    pub ring_reads: AtomicU64,
    /// Ring requests completed, writes.
    pub ring_writes: AtomicU64,
    /// Bytes that rings read.
    pub ring_read_bytes: AtomicU64,
    /// Bytes that rings wrote.
    pub ring_write_bytes: AtomicU64,
    /// Ring requests answered with an error before any I/O was tried, by reason: see [`Rejected`].
    pub rejected: [AtomicU64; Rejected::COUNT],
    /// FUSE requests answered.
    pub fuse_requests: AtomicU64,
    /// Bytes read by FUSE requests (not by passthrough).
    pub fuse_read_bytes: AtomicU64,
    /// Bytes written by FUSE requests.
    pub fuse_write_bytes: AtomicU64,
    /// Time from claim to completion of a ring batch.
    pub ring_latency: Latency,
    /// Time from read to reply of a FUSE request.
    pub fuse_latency: Latency,
}

/// Why a ring request was refused without I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// Unknown Iov, outside it, or across a block boundary.
    Buffer,
    /// No such open file.
    File,
    /// Not allowed.
    Permission,
    /// The session is read-only.
    ReadOnly,
    /// The ring itself broke the protocol and was stopped.
    Fault,
}

impl Rejected {
    /// Number of reasons.
    pub const COUNT: usize = 5;
}

/// A histogram with one bucket per power of two microseconds, 1 µs to 8 s and more.
#[derive(Debug, Default)]
pub struct Latency {
    /// Observations per bucket.
    pub buckets: [AtomicU64; 24],
    /// Sum of all, in ns.
    pub sum_ns: AtomicU64,
}
