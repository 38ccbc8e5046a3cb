#![doc = include_str!("../README.md")]

pub mod fault;
pub mod index;
pub mod ioctl;
pub mod layout;
pub mod mem;
pub mod name;
#[cfg(feature = "test-peer")]
pub mod peer;
pub mod ring;
pub mod sem;

pub use fault::RingFault;
pub use index::{Geometry, Slot};
pub use layout::{Args, Cqe, Ino, RingFlags, Sqe};
pub use mem::RingMem;
pub use name::{IovName, NameError, Priority, RingAttrs};
pub use ring::{ClientRing, PushBatch, ServerRing};
