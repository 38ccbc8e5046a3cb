//! The USRBIO wire protocol of 3FS: names under `3fs-virt/iovs`, shared-memory layouts, ring index
//! arithmetic and both ends of a ring. No I/O happens here and the only `unsafe` lives in [`mem`].
//!
//! A ring lies in memory that the other process may change at any moment, so every word is read once,
//! copied, judged, and only then used. Numbers that must not mix have types of their own ([`Slot`], [`Ino`]).
//!
//! ```
//! use usrbio_wire::{Args, ClientRing, Cqe, Geometry, Ino, ServerRing, mem::VecMem};
//!
//! let geometry = Geometry::for_entries(4).unwrap();
//! let mem = VecMem::new(geometry.file_len());
//! let client = ClientRing::new(&mem, geometry);
//! let args = Args { file_iid: Ino(7), io_len: 4096, userdata: 42, ..Args::default() };
//! client.push(0, &args).unwrap();
//!
//! let mut server = ServerRing::new(&mem, geometry, usrbio_wire::Slot::ZERO, usrbio_wire::Slot::ZERO);
//! let head = server.published().unwrap();
//! let (sqe, seen) = server.request(server.cursor()).unwrap();
//! assert_eq!((seen.io_len, sqe.userdata), (4096, 42));
//! # let _ = head;
//! ```

pub mod fault;
pub mod index;
pub mod ioctl;
pub mod layout;
pub mod mem;
pub mod name;
pub mod ring;
pub mod sem;

pub use fault::RingFault;
pub use index::{Geometry, Slot};
pub use layout::{Args, Cqe, Ino, RingFlags, Sqe};
pub use mem::RingMem;
pub use name::{IovName, NameError, Priority, RingAttrs};
pub use ring::{ClientRing, ServerRing};
