//! Names in `3fs-virt/iovs`: `uuid[.b<block>][.r<depth>|.w<depth>][.ph|.pl][.t<ms>][.f<bits>]`.
//! [`IovName::parse`] and [`Display`](std::fmt::Display) are inverses on everything that a client emits.

use crate::layout::RingFlags;
use std::fmt;
use uuid::Uuid;

/// Longest name that a client may register, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// Priority of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub enum Priority {
    /// `.ph`; below 0 in the C interface.
    High,
    /// No suffix; 0 in the C interface.
    #[default]
    Normal,
    /// `.pl`; above 0 in the C interface.
    Low,
}

impl Priority {
    /// All, most urgent first.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    /// From the C interface's number.
    pub fn from_c(raw: i32) -> Priority {
        match raw {
            ..0 => Priority::High,
            0 => Priority::Normal,
            1.. => Priority::Low,
        }
    }

    /// The name of the symlink that leads to this priority's submit semaphore.
    pub fn semaphore_link(self) -> &'static str {
        match self {
            Priority::High => "submit-ios.ph",
            Priority::Normal => "submit-ios",
            Priority::Low => "submit-ios.pl",
        }
    }
}

/// What makes a name a ring's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingAttrs {
    /// `.r` (true) or `.w`.
    pub for_read: bool,
    /// Batch size: see `io_depth` in `hf3fs_iorcreate`. Any `i32`: who serves the ring checks it against the
    /// entries, and takes the absolute value with `unsigned_abs`.
    pub io_depth: i32,
    /// `.ph`, `.pl`.
    pub priority: Priority,
    /// `.t`, in ms, at most `i32::MAX`: the C interface has an `int`.
    pub timeout_ms: u32,
    /// `.f`, in binary digits.
    pub flags: RingFlags,
}

/// A parsed name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IovName {
    /// The Iov's or ring's id.
    pub id: Uuid,
    /// `.b`, in bytes, above 0; `None` is one block.
    pub block_size: Option<u64>,
    /// Present for rings.
    pub ring: Option<RingAttrs>,
}

/// Why a name does not parse. 3FS answers EIO to a bad UUID and EINVAL to everything else. Messages escape the
/// name, which may hold control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The first part is no hyphenated UUID.
    #[error("{0:?} is not a UUID of the form 8-4-4-4-12")]
    Uuid(String),
    /// A part has a known letter and a wrong value.
    #[error("part {0:?} of the name is wrong: {1}")]
    Part(String, &'static str),
    /// `.p`, `.t` or `.f` without `.r` or `.w`.
    #[error("part {0:?} is for rings, but the name has neither '.r' nor '.w'")]
    NotARing(String),
    /// Longer than [`NAME_MAX`].
    #[error("the name has {0} bytes, more than 255")]
    TooLong(usize),
}

impl IovName {
    /// Parses a name. Unknown letters and empty parts are ignored, and of two parts with one letter the last counts.
    pub fn parse(name: &str) -> Result<IovName, NameError> {
        if name.len() > NAME_MAX {
            return Err(NameError::TooLong(name.len()));
        }
        let mut parts = name.split('.');
        let first = parts.next().unwrap_or_default();
        let id = (first.len() == 36).then(|| Uuid::try_parse(first).ok()).flatten();
        let id = id.ok_or_else(|| NameError::Uuid(first.chars().take(64).collect()))?;
        let mut block_size = None;
        let mut direction = None;
        let mut attrs = RingAttrs::default();
        let mut ring_only = None;
        for part in parts {
            let bad = |why| NameError::Part(part.to_owned(), why);
            let mut chars = part.chars();
            let letter = chars.next();
            let rest = chars.as_str();
            match letter {
                Some('b') => {
                    let size = decimal::<u64>(rest).filter(|b| *b > 0);
                    block_size = Some(size.ok_or_else(|| bad("a block size in bytes, above 0"))?);
                }
                Some(letter @ ('r' | 'w')) => {
                    attrs.io_depth = decimal(rest).ok_or_else(|| bad("a decimal io_depth"))?;
                    direction = Some(letter == 'r');
                }
                Some('p') => {
                    attrs.priority = match rest {
                        "h" => Priority::High,
                        "" | "n" => Priority::Normal,
                        "l" => Priority::Low,
                        _ => return Err(bad("a priority is h, n or l")),
                    };
                    ring_only = Some(part);
                }
                Some('t') => {
                    let timeout = decimal::<i32>(rest).and_then(|t| u32::try_from(t).ok());
                    attrs.timeout_ms = timeout.ok_or_else(|| bad("a timeout in ms, 0 or more"))?;
                    ring_only = Some(part);
                }
                Some('f') => {
                    let digits = !rest.is_empty() && rest.bytes().all(|b| matches!(b, b'0' | b'1'));
                    let flags = digits.then(|| u64::from_str_radix(rest, 2).ok()).flatten();
                    attrs.flags = RingFlags(flags.ok_or_else(|| bad("flags in binary digits, at most 64"))?);
                    ring_only = Some(part);
                }
                _ => {}
            }
        }
        match (direction, ring_only) {
            (None, Some(part)) => Err(NameError::NotARing(part.to_owned())),
            (direction, _) => {
                let ring = direction.map(|for_read| RingAttrs { for_read, ..attrs });
                Ok(IovName { id, block_size, ring })
            }
        }
    }
}

/// Digits with an optional minus, nothing else: `str::parse` also takes a plus sign.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'-').then(|| text.parse().ok()).flatten()
}

impl fmt::Display for IovName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id.hyphenated())?;
        if let Some(block) = self.block_size {
            write!(f, ".b{block}")?;
        }
        let Some(ring) = self.ring else { return Ok(()) };
        write!(f, ".{}{}", if ring.for_read { 'r' } else { 'w' }, ring.io_depth)?;
        match ring.priority {
            Priority::High => f.write_str(".ph")?,
            Priority::Normal => {}
            Priority::Low => f.write_str(".pl")?,
        }
        write!(f, ".t{}", ring.timeout_ms)?;
        if ring.flags != RingFlags::default() {
            write!(f, ".f{:b}", ring.flags.0)?;
        }
        Ok(())
    }
}
