//! Walks over directory trees that belong to somebody who may be changing them meanwhile, and may mean harm.
//!
//! What holds for every walk:
//!
//! * **It never leaves the tree.** A name is resolved one component at a time, relative to an open directory, and never
//!   through a link, onto another mount or to `..` ([`open`], [`place`]).
//! * **It costs a bounded amount** of memory, fds and stack, however deep, wide or long-named the tree is ([`place`],
//!   [`listing`]).
//! * **It ends** though the tree changes: what it may visit is bounded by what can be there ([`meter`]).
//!
//! The program runs each walk in a process of its own, which sees nothing of the machine but the tree ([`sandbox`]).

pub mod copy;
pub mod count;
pub mod error;
pub mod group;
pub mod listing;
pub mod meter;
pub mod open;
pub mod place;
pub mod remove;
pub mod sandbox;
mod sys;
pub mod walk;

pub use error::{Failure, Result};
pub use sys::lower_io_priority;
