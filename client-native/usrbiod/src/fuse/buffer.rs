//! The buffers of a worker. The data of a write and of a read lie on page boundaries, so that they can go to and come from
//! files that were opened with `O_DIRECT`.

use super::abi::{InHeader, OutHeader, WriteIn};
use zerocopy::IntoBytes;

/// Most bytes of one read or write.
pub const MAX_IO: usize = 1 << 20;
const PAGE: usize = 4096;
/// Bytes of the longest request.
pub const REQUEST_LEN: usize = MAX_IO + PAGE;
const BEFORE_DATA: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// `len` bytes, a given place of which is at the start of a page. Pages that were never touched cost no memory.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize, aligned_at: usize) -> Aligned {
        let bytes = vec![0; len + 2 * PAGE];
        let to_page = bytes.as_ptr().align_offset(PAGE);
        let start = to_page + PAGE - aligned_at;
        Aligned { bytes, start, len }
    }

    fn all(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Where requests are read to.
pub struct RequestBuffer(Aligned);

impl RequestBuffer {
    /// An empty one.
    pub fn new() -> RequestBuffer {
        let mut buffer = Aligned::new(REQUEST_LEN, BEFORE_DATA);
        // Every page is there before the first request. A page that had to be made while the kernel copies a request to it
        // cannot be when the daemon is just being killed, and the kernel would answer that request with EIO
        // (`fuse_dev_do_read`) in place of giving it to the successor.
        buffer.all().fill(1);
        RequestBuffer(buffer)
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.all()
    }
}

/// Where replies are made: the body is written in place, the header goes before it when it is sent.
pub struct ReplyBuffer(Aligned);

impl ReplyBuffer {
    /// An empty one.
    pub fn new() -> ReplyBuffer {
        ReplyBuffer(Aligned::new(size_of::<OutHeader>() + MAX_IO, size_of::<OutHeader>()))
    }

    /// Room for the body.
    pub fn body(&mut self) -> &mut [u8] {
        &mut self.0.all()[size_of::<OutHeader>()..]
    }

    /// The whole message whose body is the first `len` bytes.
    pub fn message(&mut self, unique: u64, len: usize) -> &[u8] {
        let total = size_of::<OutHeader>() + len;
        let header = OutHeader { len: total as u32, error: 0, unique };
        let message = &mut self.0.all()[..total];
        message[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_reads_and_writes_starts_a_page() {
        let mut request = RequestBuffer::new();
        assert_eq!(request.bytes()[BEFORE_DATA..].as_ptr().align_offset(PAGE), 0);
        assert_eq!(request.bytes().len(), REQUEST_LEN);
        let mut reply = ReplyBuffer::new();
        assert_eq!(reply.body().as_ptr().align_offset(PAGE), 0);
        assert_eq!(reply.body().len(), MAX_IO);
    }

    #[test]
    fn a_message_is_header_and_body() {
        let mut reply = ReplyBuffer::new();
        reply.body()[..3].copy_from_slice(b"abc");
        let header = OutHeader { len: 19, error: 0, unique: 9 };
        assert_eq!(reply.message(9, 3), [header.as_bytes(), b"abc"].concat());
    }
}
