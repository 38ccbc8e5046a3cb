//! What a walk fails with.

use rustix::io::Errno;
use std::ffi::CStr;

/// Bytes of a name that an error shows.
const SHOWN: usize = 80;

/// Why a walk ended early: what the kernel said, and what was being done.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {errno}")]
pub struct Failure {
    /// What the kernel answered, or `ETIME` (no time left), `EAGAIN` (the tree changes too fast), `ELOOP` (too deep).
    pub errno: Errno,
    /// What was being done, in words.
    pub doing: String,
}

/// The result of a walk or of a part of it.
pub type Result<T> = std::result::Result<T, Failure>;

/// Says what was being done when a system call failed.
pub trait Doing<T> {
    /// The error, with what was being done.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Failure { errno, doing: what() })
    }
}

/// A name as it may be shown: printable, and not long.
pub fn shown(name: &CStr) -> String {
    let bytes = name.to_bytes();
    let more = if bytes.len() > SHOWN { "…" } else { "" };
    format!("\"{}{more}\"", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_on_one_line_whatever_it_holds() {
        assert_eq!(shown(c"a\n\xff\""), r#""a\n\xff\"""#);
        let long = std::ffi::CString::new(vec![b'x'; 255]).unwrap();
        assert!(shown(&long).len() < 100);
    }
}
