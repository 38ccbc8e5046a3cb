//! Both ends of a ring.
//!
//! Order of steps, for each side (3FS, `IoRing.h`; contract of the four index words):
//!
//! * client: `args`, `sqe`, then `sqeHead`; later `cqe`, then `cqeTail` by compare-and-swap.
//! * daemon: `sqeHead`, then `sqe` and `args`; `cqe`, then `sqeTail`, then `cqeHead`.
//!
//! `sqeTail` goes before `cqeHead`: a client that sees its completion also sees the SQ slot free again.

use crate::fault::RingFault;
use crate::index::{Geometry, Slot};
use crate::layout::{ARGS_LEN, Args, CQE_LEN, Cqe, SQE_LEN, Sqe, Word};
use crate::mem::RingMem;

fn read<M: RingMem, const WORDS: usize>(mem: &M, at: usize) -> [u64; WORDS] {
    std::array::from_fn(|i| mem.load(at + 8 * i))
}

fn write(mem: &impl RingMem, at: usize, words: &[u64]) {
    for (i, word) in words.iter().enumerate() {
        mem.store(at + 8 * i, *word);
    }
}

fn slot(mem: &impl RingMem, geometry: Geometry, word: Word) -> Result<Slot, RingFault> {
    let raw = mem.load_index(word as usize);
    geometry.slot(raw).ok_or(RingFault::IndexOutOfRange { word, raw, slots: geometry.slots() })
}

/// The client's end: pushes requests, pops completions. One thread pushes and one pops at a time; they may be
/// different threads.
#[derive(Debug)]
pub struct ClientRing<M> {
    mem: M,
    geometry: Geometry,
}

impl<M: RingMem> ClientRing<M> {
    /// The client's end of the ring in `mem`, which holds at least `geometry.file_len()` bytes.
    pub fn new(mem: M, geometry: Geometry) -> Self {
        ClientRing { mem, geometry }
    }

    /// The ring's geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Publishes a request in argument slot `args_slot`. `Ok(false)`: the submission queue is full, nothing was
    /// written. The caller picks a slot that is free: no request in flight or unreaped uses it.
    ///
    /// # Panics
    /// When `args_slot` is not below `entries`.
    #[inline]
    pub fn push(&self, args_slot: u32, args: &Args) -> Result<bool, RingFault> {
        let mut batch = self.start_push()?;
        let pushed = batch.push(args_slot, args);
        batch.publish();
        Ok(pushed)
    }

    /// Starts a batch of requests that the daemon sees all at once, with [`PushBatch::publish`].
    #[inline]
    pub fn start_push(&self) -> Result<PushBatch<'_, M>, RingFault> {
        let g = self.geometry;
        let head = slot(&self.mem, g, Word::SqeHead)?;
        let room = g.entries() - g.distance(slot(&self.mem, g, Word::SqeTail)?, head);
        Ok(PushBatch { ring: self, published: head, head, room })
    }

    /// Where the next request goes.
    #[inline]
    pub fn head(&self) -> Result<Slot, RingFault> {
        slot(&self.mem, self.geometry, Word::SqeHead)
    }

    /// Completions that wait to be popped.
    pub fn completed(&self) -> Result<u32, RingFault> {
        let head = slot(&self.mem, self.geometry, Word::CqeHead)?;
        let tail = slot(&self.mem, self.geometry, Word::CqeTail)?;
        Ok(self.geometry.distance(tail, head))
    }

    /// Takes completions into `out`, oldest first; the count taken. 0 when another thread pops at the same time.
    pub fn pop(&self, out: &mut [Cqe]) -> Result<usize, RingFault> {
        self.pop_with(out.len(), |i, cqe| out[i] = cqe)
    }

    /// Shows up to `max` completions to `take`, oldest first, as `(position, completion)`, and then takes them all
    /// with one step of `cqeTail`; the count taken. 0 when another thread pops at the same time: what `take` saw is
    /// then the other thread's.
    #[inline]
    pub fn pop_with(&self, max: usize, mut take: impl FnMut(usize, Cqe)) -> Result<usize, RingFault> {
        let g = self.geometry;
        let tail = slot(&self.mem, g, Word::CqeTail)?;
        let ready = g.distance(tail, slot(&self.mem, g, Word::CqeHead)?) as usize;
        let count = ready.min(max);
        let mut at = tail;
        for i in 0..count {
            let words: [u64; CQE_LEN / 8] = read(&self.mem, g.cqe_at(at));
            take(i, zerocopy::transmute!(words));
            at = g.next(at);
        }
        let taken = count == 0 || self.mem.replace_index(Word::CqeTail as usize, tail.raw(), at.raw());
        Ok(if taken { count } else { 0 })
    }
}

/// Requests on their way into a ring: written, and shown to the daemon by [`publish`](Self::publish). Dropping it
/// forgets those that were not published.
#[derive(Debug)]
#[must_use = "nothing is pushed before `publish`"]
pub struct PushBatch<'a, M> {
    ring: &'a ClientRing<M>,
    published: Slot,
    head: Slot,
    room: u32,
}

impl<M: RingMem> PushBatch<'_, M> {
    /// Requests that the submission queue still has room for.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// Writes a request in argument slot `args_slot`. `false`: the submission queue is full, nothing was written.
    ///
    /// # Panics
    /// When `args_slot` is not below `entries`.
    #[inline]
    pub fn push(&mut self, args_slot: u32, args: &Args) -> bool {
        let g = self.ring.geometry;
        assert!(args_slot < g.entries(), "argument slot {args_slot} of {}", g.entries());
        if self.room == 0 {
            return false;
        }
        let words: [u64; ARGS_LEN / 8] = zerocopy::transmute!(*args);
        write(&self.ring.mem, g.args_at(args_slot), &words);
        let sqe = Sqe { index: args_slot as i32, pad: 0, userdata: args.userdata };
        let words: [u64; SQE_LEN / 8] = zerocopy::transmute!(sqe);
        write(&self.ring.mem, g.sqe_at(self.head), &words);
        self.head = g.next(self.head);
        self.room -= 1;
        true
    }

    /// Shows the requests to the daemon.
    #[inline]
    pub fn publish(self) {
        if self.head != self.published {
            self.ring.mem.store_index(Word::SqeHead as usize, self.head.raw());
        }
    }
}

/// The daemon's end: reads requests, publishes completions in request order.
///
/// It keeps its own two positions and never believes the shared copies of them: `cursor`, up to where requests
/// were claimed, and `cq_head`, where the next completion goes.
#[derive(Debug)]
pub struct ServerRing<M> {
    mem: M,
    geometry: Geometry,
    cursor: Slot,
    released: Slot,
    cq_head: Slot,
}

impl<M: RingMem> ServerRing<M> {
    /// The daemon's end of a ring that has released requests up to `sq_tail` and completed up to `cq_head`: both
    /// [`Slot::ZERO`] for a new ring.
    ///
    /// # Panics
    /// When one of the slots is not of this geometry: take them from [`Geometry::slot`].
    pub fn new(mem: M, geometry: Geometry, sq_tail: Slot, cq_head: Slot) -> Self {
        for slot in [sq_tail, cq_head] {
            assert!(geometry.slot(slot.raw()).is_some(), "{slot:?} on a ring of {} slots", geometry.slots());
        }
        ServerRing { mem, geometry, cursor: sq_tail, released: sq_tail, cq_head }
    }

    /// The ring's geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The ring's memory.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// The next request to claim.
    pub fn cursor(&self) -> Slot {
        self.cursor
    }

    /// Requests claimed and not completed.
    pub fn claimed(&self) -> u32 {
        self.geometry.distance(self.released, self.cursor)
    }

    /// Counts the requests published and not claimed, no more than there is completion room for. The peer's words
    /// are read once and judged before use.
    ///
    /// `sqeHead` is read before `cqeTail`: a client frees an argument slot before it fills it again, so whoever
    /// sees the new request also sees the reaped completion, and an honest client never looks like an overflow.
    pub fn published(&self) -> Result<u32, RingFault> {
        let g = self.geometry;
        let queued = g.distance(self.cursor, slot(&self.mem, g, Word::SqeHead)?);
        if queued == 0 {
            return Ok(0);
        }
        self.in_bounds(self.claimed() + queued)?;
        let unreaped = g.distance(slot(&self.mem, g, Word::CqeTail)?, self.cq_head);
        let owed = self.in_bounds(self.claimed() + unreaped)?;
        Ok(queued.min(g.entries() - owed))
    }

    fn in_bounds(&self, inflight: u32) -> Result<u32, RingFault> {
        let entries = self.geometry.entries();
        if inflight <= entries { Ok(inflight) } else { Err(RingFault::Overflow { inflight, entries }) }
    }

    /// Is anything published beyond the cursor? One load: what a spinning daemon asks. It stays true while a client
    /// withholds completion room, so the spin needs a limit.
    pub fn has_published(&self) -> bool {
        self.mem.load_index(Word::SqeHead as usize) != self.cursor.raw()
    }

    /// A copy of the request in SQ slot `at`.
    pub fn request(&self, at: Slot) -> Result<(Sqe, Args), RingFault> {
        let g = self.geometry;
        let words: [u64; SQE_LEN / 8] = read(&self.mem, g.sqe_at(at));
        let sqe: Sqe = zerocopy::transmute!(words);
        let args_slot = u32::try_from(sqe.index)
            .ok()
            .filter(|i| *i < g.entries())
            .ok_or(RingFault::ArgsOutOfRange { slot: at.index(), raw: sqe.index, entries: g.entries() })?;
        let words: [u64; ARGS_LEN / 8] = read(&self.mem, g.args_at(args_slot));
        Ok((sqe, zerocopy::transmute!(words)))
    }

    /// Claims the request at the cursor: copies it out and moves the cursor on. For as many as
    /// [`published`](Self::published) counted; never more than `entries` before completions are published. After
    /// an error the cursor has not moved.
    pub fn claim(&mut self) -> Result<(Sqe, Args), RingFault> {
        self.in_bounds(self.claimed() + 1)?;
        let request = self.request(self.cursor)?;
        self.cursor = self.geometry.next(self.cursor);
        Ok(request)
    }

    /// Writes the `i`-th completion of a batch that [`publish`](Self::publish) will show; the client does not see
    /// it yet.
    ///
    /// # Panics
    /// When `i` is not below [`claimed`](Self::claimed): it would overwrite completions that the client owns.
    pub fn stage(&self, i: u32, cqe: &Cqe) {
        assert!(i < self.claimed(), "completion {i} of {} claimed requests", self.claimed());
        let words: [u64; CQE_LEN / 8] = zerocopy::transmute!(*cqe);
        write(&self.mem, self.geometry.cqe_at(self.geometry.advance(self.cq_head, i)), &words);
    }

    /// Where `sqeTail` and `cqeHead` will be after `n` more completions: what a journal must know before
    /// [`publish`](Self::publish).
    ///
    /// # Panics
    /// When `n` is more than [`claimed`](Self::claimed).
    pub fn after(&self, n: u32) -> (Slot, Slot) {
        assert!(n <= self.claimed(), "{n} completions of {} claimed requests", self.claimed());
        (self.geometry.advance(self.released, n), self.geometry.advance(self.cq_head, n))
    }

    /// Shows `n` staged completions to the client and releases their SQ slots.
    ///
    /// # Panics
    /// When `n` is more than [`claimed`](Self::claimed).
    #[inline]
    pub fn publish(&mut self, n: u32) {
        (self.released, self.cq_head) = self.after(n);
        self.restore();
    }

    /// Stores both daemon-owned index words again, as a successor does that finds a half-done publish.
    pub fn restore(&self) {
        self.mem.store_index(Word::SqeTail as usize, self.released.raw());
        self.mem.store_index(Word::CqeHead as usize, self.cq_head.raw());
    }
}
