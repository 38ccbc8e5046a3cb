//! Which offsets are asked for, and what a file holds at each of them.

/// Bytes of a memory page and of the small requests.
pub const PAGE: usize = 4096;

/// The word at byte `offset` of every file made here: wrong offsets and stale buffers show.
pub fn word_at(offset: u64) -> u64 {
    let mut z = offset.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

/// Fills `buffer` with what a file holds from `offset` on.
pub fn fill(buffer: &mut [u8], offset: u64) {
    for (index, word) in buffer.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_at(offset + 8 * index as u64).to_le_bytes());
    }
}

/// Whether `data` is what a file holds from `offset` on; long data is judged by its first and last page.
pub fn matches(data: &[u8], offset: u64) -> bool {
    let tail = data.len().saturating_sub(PAGE) / 8 * 8;
    words_match(&data[..data.len().min(PAGE)], offset) && words_match(&data[tail..], offset + tail as u64)
}

fn words_match(data: &[u8], offset: u64) -> bool {
    data.chunks_exact(8)
        .enumerate()
        .all(|(index, word)| word == word_at(offset + 8 * index as u64).to_le_bytes())
}

/// The offsets of the requests to come.
#[derive(Clone, Debug)]
pub struct Pattern {
    order: Order,
    block: u64,
    blocks: u64,
}

#[derive(Clone, Debug)]
enum Order {
    Random { state: u64 },
    Sequential { next: u64 },
}

impl Pattern {
    /// Any block of a file of `size` bytes, again and again.
    pub fn random(size: u64, block: usize) -> Self {
        Self {
            order: Order::Random { state: 0x9e37_79b9_7f4a_7c15 },
            block: block as u64,
            blocks: size / block as u64,
        }
    }

    /// One block after the other, from the start again at the end.
    pub fn sequential(size: u64, block: usize) -> Self {
        Self { order: Order::Sequential { next: 0 }, block: block as u64, blocks: size / block as u64 }
    }

    /// The same pattern with other random numbers, for another client.
    pub fn seeded(mut self, seed: u64) -> Self {
        if let Order::Random { state } = &mut self.order {
            *state ^= word_at(seed) | 1;
        }
        self
    }

    /// The next offset.
    #[inline]
    pub fn next_offset(&mut self) -> u64 {
        match &mut self.order {
            Order::Random { state } => {
                // xorshift64: a few cycles, so that the loop measures I/O. The high half of the product with
                // `blocks` is a block number without a division.
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                let number = (u128::from(*state) * u128::from(self.blocks)) >> 64;
                number as u64 * self.block
            }
            Order::Sequential { next } => {
                let offset = *next * self.block;
                *next = (*next + 1) % self.blocks;
                offset
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_offsets_are_whole_blocks_inside_the_file_and_reach_most_of_it() {
        let mut pattern = Pattern::random(64 * 4096, 4096);
        let seen: std::collections::BTreeSet<u64> = (0..1000).map(|_| pattern.next_offset()).collect();
        assert!(seen.iter().all(|offset| offset % 4096 == 0 && *offset < 64 * 4096));
        assert!(seen.len() > 60, "{} of 64 blocks", seen.len());
    }

    #[test]
    fn sequential_offsets_start_again_at_the_end() {
        let mut pattern = Pattern::sequential(3 * 4096, 4096);
        assert_eq!([0; 4].map(|_: i32| pattern.next_offset()), [0, 4096, 8192, 0]);
    }

    #[test]
    fn data_of_another_offset_does_not_match() {
        let mut data = vec![0; 3 * PAGE];
        fill(&mut data, 8192);
        assert!(matches(&data, 8192));
        assert!(!matches(&data, 4096));
        *data.last_mut().unwrap() ^= 1;
        assert!(!matches(&data, 8192));
    }
}
