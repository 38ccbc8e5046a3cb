//! `libusrbio.so`: the C interface of 3FS USRBIO, function for function and byte for byte that of
//! `libhf3fs_api_shared.so`, under which name it is installed too.
//!
//! Each function checks its arguments, calls the crate `usrbio`, and turns errors into the numbers that 3FS
//! answers. No panic gets out ([`boundary`]). The header is `include/usrbio.h`.

mod boundary;
mod log;

pub mod fd;
pub mod ior;
pub mod iov;
pub mod misc;
