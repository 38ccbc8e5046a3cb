//! What the kernel is to forget, told by threads that nobody waits for.
//!
//! A notification waits for locks of the kernel: of the directory, or of pages. Their holder may be a process that waits for
//! an answer of this daemon; told by the worker that is to give that answer, it would never come. So each session has a
//! [`Notes`] queue, bounded, and a few threads write what is in it: one at most for a session, so that a session whose
//! kernel side blocks costs one thread and holds up nobody else. They end when there is nothing to tell.

use super::channel::Teller;
use crate::types::NodeId;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Most notes that wait in one session. What is pushed out is the oldest: the kernel asks for it again by itself when its
/// validity is over, a second after it was told. Of a name, what is left is a note of its directory, if that is none yet.
const MOST: usize = 1024;
/// How long an answer waits until the kernel has forgotten. Mostly that takes microseconds.
const PATIENCE: Duration = Duration::from_millis(200);
/// A thread without work ends after this time.
const LINGER: Duration = Duration::from_secs(10);
/// Notes of one session after which others get their turn.
const TURN: usize = 64;

/// What the kernel is to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The name, and what is known below it. Mounts on it go.
    Forget(NodeId, CString),
    /// What the name stands for: it is looked up at its next use, and if it is the same node nothing else happens (before
    /// Linux 6.2 as [`Forget`](Note::Forget)).
    LookAgain(NodeId, CString),
    /// Attributes, ACLs and listing of a node.
    Attributes(NodeId),
    /// The same, and all cached pages. It waits for reads of those that are under way.
    Pages(NodeId),
}

/// Writes a note to the kernel; may wait.
type Tell = dyn Fn(&Note) + Send + Sync;

/// The threads of a daemon that tell. Clones are the same threads.
#[derive(Clone, Default)]
pub struct Notifier(Arc<Threads>);

#[derive(Default)]
struct Threads {
    work: Mutex<Work>,
    more: Condvar,
}

#[derive(Default)]
struct Work {
    ready: VecDeque<Arc<Queue>>,
    threads: usize,
    idle: usize,
}

/// The notes of one session that are not told yet.
pub struct Notes {
    queue: Arc<Queue>,
    notifier: Notifier,
}

struct Queue {
    tell: Box<Tell>,
    waiting: Mutex<Waiting>,
    told: Condvar,
}

#[derive(Default)]
struct Waiting {
    notes: VecDeque<Note>,
    /// Nodes of which a note waits; of those in `true` the pages as well.
    nodes: HashMap<NodeId, bool>,
    /// Notes that ever came, and that are done with: told or pushed out.
    came: u64,
    done: u64,
    /// A thread has the queue, or is about to.
    taken: bool,
    /// When the note that is being told was begun.
    since: Option<Instant>,
}

/// Everything that was noted for a session up to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

impl Notifier {
    /// Threads at present.
    pub fn threads(&self) -> usize {
        self.0.lock().threads
    }

    fn ready(&self, queue: Arc<Queue>) {
        let mut work = self.0.lock();
        work.ready.push_back(queue);
        if work.idle >= work.ready.len() {
            self.0.more.notify_one();
            return;
        }
        work.threads += 1;
        drop(work);
        let threads = self.0.clone();
        let started = std::thread::Builder::new().name("notify".into()).spawn(move || threads.run());
        if let Err(error) = started {
            // Whoever is there, or comes with the next note, tells these as well.
            self.0.lock().threads -= 1;
            tracing::warn!(%error, "no thread to tell the kernel of changes: it may show old entries for a second");
        }
    }
}

impl Threads {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn run(&self) {
        while let Some(queue) = self.next() {
            if queue.tell_some() {
                self.lock().ready.push_back(queue);
            }
        }
    }

    fn next(&self) -> Option<Arc<Queue>> {
        let mut work = self.lock();
        let deadline = Instant::now() + LINGER;
        loop {
            if let Some(queue) = work.ready.pop_front() {
                return Some(queue);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                work.threads -= 1;
                return None;
            }
            work.idle += 1;
            work = self.more.wait_timeout(work, left).unwrap_or_else(|e| e.into_inner()).0;
            work.idle -= 1;
        }
    }
}

impl Notes {
    /// No notes yet for the kernel behind `teller`.
    pub(super) fn new(teller: Teller, notifier: &Notifier) -> Notes {
        Notes::told_by(move |note| teller.tell(note), notifier)
    }

    fn told_by(tell: impl Fn(&Note) + Send + Sync + 'static, notifier: &Notifier) -> Notes {
        let queue = Queue { tell: Box::new(tell), waiting: Mutex::default(), told: Condvar::new() };
        Notes { queue: Arc::new(queue), notifier: notifier.clone() }
    }

    /// Has the kernel told of it, soon. Never waits; may be called from any thread.
    pub fn push(&self, note: Note) -> Ticket {
        self.push_all([note])
    }

    /// The same for several.
    pub fn push_all(&self, notes: impl IntoIterator<Item = Note>) -> Ticket {
        let mut waiting = self.queue.lock();
        for note in notes {
            waiting.add(note);
        }
        let ticket = Ticket(waiting.came);
        let ready = !waiting.notes.is_empty() && !std::mem::replace(&mut waiting.taken, true);
        drop(waiting);
        if ready {
            self.notifier.ready(self.queue.clone());
        }
        ticket
    }

    /// Is everything up to `ticket` told?
    pub fn is_told(&self, ticket: Ticket) -> bool {
        self.queue.lock().done >= ticket.0
    }

    /// Waits until everything up to `ticket` is told, but not for long: a caller then sees old entries until they time out or
    /// the note gets through. Not at all when the kernel lets this session's notes wait already.
    pub fn settle(&self, ticket: Ticket) -> bool {
        let mut waiting = self.queue.lock();
        let deadline = Instant::now() + PATIENCE;
        while waiting.done < ticket.0 {
            let stuck = waiting.since.is_some_and(|since| since.elapsed() >= PATIENCE);
            let left = deadline.saturating_duration_since(Instant::now());
            if stuck || left.is_zero() {
                return false;
            }
            waiting = self.queue.told.wait_timeout(waiting, left).unwrap_or_else(|e| e.into_inner()).0;
        }
        true
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells up to [`TURN`] notes. True: there are more, and the caller still has the queue.
    fn tell_some(&self) -> bool {
        for _ in 0..TURN {
            let mut waiting = self.lock();
            let Some(note) = waiting.take() else {
                waiting.taken = false;
                return false;
            };
            waiting.since = Some(Instant::now());
            drop(waiting);
            (self.tell)(&note);
            let mut waiting = self.lock();
            waiting.since = None;
            waiting.done += 1;
            drop(waiting);
            self.told.notify_all();
        }
        true
    }
}

impl Waiting {
    fn add(&mut self, note: Note) {
        if let Note::Attributes(node) | Note::Pages(node) = note {
            let pages = matches!(note, Note::Pages(_));
            let known = self.nodes.get_mut(&node);
            if let Some(too) = known {
                *too |= pages;
                return;
            }
            self.nodes.insert(node, pages);
        }
        self.notes.push_back(note);
        self.came += 1;
        while self.notes.len() > MOST {
            let oldest = self.take();
            self.done += 1;
            if let Some(Note::Forget(parent, _) | Note::LookAgain(parent, _)) = oldest
                && self.nodes.len() < MOST / 2
                && !self.nodes.contains_key(&parent)
            {
                // Pushes out another name in its turn.
                self.nodes.insert(parent, false);
                self.notes.push_back(Note::Attributes(parent));
                self.came += 1;
            }
        }
    }

    fn take(&mut self) -> Option<Note> {
        let note = self.notes.pop_front()?;
        Some(match note {
            Note::Attributes(node) | Note::Pages(node) => match self.nodes.remove(&node) {
                Some(true) => Note::Pages(node),
                _ => Note::Attributes(node),
            },
            name => name,
        })
    }
}

impl Note {
    /// `name` in `parent` is gone or another one.
    pub fn forget(parent: NodeId, name: &CStr) -> Note {
        Note::Forget(parent, name.to_owned())
    }

    /// `name` in `parent` may be gone, or another one.
    pub fn look_again(parent: NodeId, name: &CStr) -> Note {
        Note::LookAgain(parent, name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const LONG: Duration = Duration::from_secs(20);

    /// A kernel that takes a note only when it is let, and shows each that it has begun.
    fn gated(notifier: &Notifier) -> (Notes, Receiver<Note>, Sender<()>) {
        let (begun, begins) = channel();
        let (let_go, gate) = channel();
        let (begun, gate) = (Mutex::new(begun), Mutex::new(gate));
        let tell = move |note: &Note| {
            begun.lock().unwrap().send(note.clone()).unwrap();
            // A gate that is gone is open.
            let _: Result<(), _> = gate.lock().unwrap().recv();
        };
        (Notes::told_by(tell, notifier), begins, let_go)
    }

    fn name(i: usize) -> Note {
        Note::Forget(NodeId(7), CString::new(format!("name-{i}")).unwrap())
    }

    #[test]
    fn a_thousand_notes_that_block_cost_one_thread_and_no_other_session() {
        let notifier = Notifier::default();
        let (blocked, begins, gate) = gated(&notifier);
        let last = blocked.push_all((0..1000).map(name));
        assert_eq!(begins.recv_timeout(LONG), Ok(name(0)));
        let (open, others, _) = gated(&notifier);
        let ticket = open.push(name(1));
        assert_eq!(others.recv_timeout(LONG), Ok(name(1)));
        assert!(open.settle(ticket));
        assert!(!blocked.is_told(last));
        assert!(notifier.threads() <= 2, "{}", notifier.threads());
        drop(gate);
        let told: Vec<Note> = begins.iter().take(999).collect();
        assert_eq!(told, (1..1000).map(name).collect::<Vec<_>>(), "in order");
    }

    #[test]
    fn an_answer_does_not_wait_for_a_kernel_that_blocks_for_long() {
        let notifier = Notifier::default();
        let (notes, begins, _gate) = gated(&notifier);
        let first = notes.push(name(0));
        begins.recv_timeout(LONG).unwrap();
        assert!(!notes.settle(first));
        let begun = Instant::now();
        for i in 1..100 {
            let ticket = notes.push(name(i));
            assert!(!notes.settle(ticket));
        }
        assert!(begun.elapsed() < 10 * PATIENCE, "it waited each time");
    }

    #[test]
    fn the_queue_is_bounded_and_names_that_do_not_fit_become_a_note_of_their_directory() {
        let notifier = Notifier::default();
        let (notes, begins, gate) = gated(&notifier);
        notes.push(Note::Attributes(NodeId(1)));
        begins.recv_timeout(LONG).unwrap();
        let last = notes.push_all((0..3 * MOST).map(name));
        assert_eq!(notes.queue.lock().notes.len(), MOST);
        drop(gate);
        let told: Vec<Note> = begins.iter().take(MOST).collect();
        assert_eq!(told.last(), Some(&name(3 * MOST - 1)), "the newest are told");
        assert!(told.contains(&Note::Attributes(NodeId(7))));
        assert!(notes.settle(last));
    }

    #[test]
    fn what_is_noted_of_one_node_again_and_again_is_told_once() {
        let notifier = Notifier::default();
        let (notes, begins, gate) = gated(&notifier);
        notes.push(name(0));
        begins.recv_timeout(LONG).unwrap();
        for _ in 0..1000 {
            notes.push_all([
                Note::Attributes(NodeId(5)),
                Note::Pages(NodeId(5)),
                Note::Attributes(NodeId(6)),
            ]);
        }
        let last = notes.push(name(1));
        drop(gate);
        let told: Vec<Note> = begins.iter().take(3).collect();
        assert_eq!(told, [Note::Pages(NodeId(5)), Note::Attributes(NodeId(6)), name(1)]);
        assert!(notes.settle(last));
        assert!(notes.queue.lock().nodes.is_empty());
    }
}
