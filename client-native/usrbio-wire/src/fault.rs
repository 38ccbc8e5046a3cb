//! What can be wrong with a ring whose other end is hostile or broken.

use crate::layout::Word;

/// A rule of the ring protocol that the peer broke. The ring that shows one is beyond use: its indices can no
/// longer be believed. Other rings are not touched by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// An index word lies outside `0..slots`.
    #[error("ring word {word:?} is {raw}, outside 0..{slots}")]
    IndexOutOfRange {
        /// The word that was read.
        word: Word,
        /// Its value.
        raw: i32,
        /// The number of slots of the ring, `entries + 1`.
        slots: u32,
    },
    /// An SQE names an argument slot outside `0..entries`.
    #[error("the request in SQ slot {slot} names argument slot {raw}, outside 0..{entries}")]
    ArgsOutOfRange {
        /// The SQ slot that holds the request.
        slot: u32,
        /// The argument slot that it names.
        raw: i32,
        /// The number of argument slots.
        entries: u32,
    },
    /// A completion names an argument slot that holds no request.
    #[error("a completion names argument slot {raw} of {entries}, which holds no request")]
    UnknownCompletion {
        /// The argument slot that it names.
        raw: i32,
        /// The number of argument slots.
        entries: u32,
    },
    /// The peer published over requests that still execute, or took completions back (moved `cqeTail` backwards
    /// or past `cqeHead`): no order of correct steps leads there.
    #[error("the indices say that {inflight} requests are in flight on a ring of {entries} entries")]
    Overflow {
        /// Executing requests together with the queued or with the unreaped ones.
        inflight: u32,
        /// The most that there can be.
        entries: u32,
    },
}
