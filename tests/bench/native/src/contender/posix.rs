//! System calls of everyday programs, on a native file or through a mount.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;

use anyhow::Result;

use super::{Buffers, Contender, Direction, expect_full};
use crate::pattern;

/// pread and pwrite, one call a request.
pub struct Positioned {
    file: File,
    buffers: Buffers,
    direction: Direction,
}

impl Positioned {
    /// Up to `batch` requests of `block` bytes on `file`.
    pub fn new(file: File, batch: usize, block: usize, direction: Direction) -> Self {
        Self { file, buffers: Buffers::new(batch, block, |all| pattern::fill(all, 0)), direction }
    }
}

impl Contender for Positioned {
    fn run(&mut self, offsets: &[u64]) -> Result<()> {
        for (index, &offset) in offsets.iter().enumerate() {
            let buffer = self.buffers.slot_mut(index);
            let moved = match self.direction {
                Direction::Read => self.file.read_at(buffer, offset)?,
                Direction::Write => self.file.write_at(buffer, offset)?,
            };
            expect_full(moved as i64, buffer.len(), offset)?;
        }
        Ok(())
    }

    fn slot(&self, index: usize) -> &[u8] {
        self.buffers.slot(index)
    }
}

/// read(2) and write(2) at the file position; offset 0 rewinds. For sequential patterns only.
pub struct Streamed {
    file: File,
    buffers: Buffers,
    direction: Direction,
}

impl Streamed {
    /// Up to `batch` requests of `block` bytes on `file`.
    pub fn new(file: File, batch: usize, block: usize, direction: Direction) -> Self {
        Self { file, buffers: Buffers::new(batch, block, |all| pattern::fill(all, 0)), direction }
    }
}

impl Contender for Streamed {
    fn run(&mut self, offsets: &[u64]) -> Result<()> {
        for (index, &offset) in offsets.iter().enumerate() {
            if offset == 0 {
                self.file.rewind()?;
            }
            let buffer = self.buffers.slot_mut(index);
            let moved = match self.direction {
                Direction::Read => self.file.read(buffer)?,
                Direction::Write => self.file.write(buffer)?,
            };
            expect_full(moved as i64, buffer.len(), offset)?;
        }
        Ok(())
    }

    fn slot(&self, index: usize) -> &[u8] {
        self.buffers.slot(index)
    }
}
