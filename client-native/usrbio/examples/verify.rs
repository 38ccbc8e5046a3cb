//! Writes and reads back blocks of a file through a pair of rings and checks every byte, until it is stopped or
//! something is wrong: `verify FILE [SECONDS]`. It prints `running` when its rings are registered, and at the end
//! how many requests were answered and how long the longest batch took.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};
use usrbio::{Cqe, Iov, Mount, RegisteredFile, Request, Ring, RingOptions};

const BLOCK: usize = 4096;
const BATCH: usize = 32;
const BLOCKS: u64 = 1024;

/// Block `n` in its `version`: every word says both, and its place.
fn fill(bytes: &mut [u8], n: u64, version: u64) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(n << 40 | version << 16 | i as u64).to_ne_bytes());
    }
}

struct Load {
    iov: Iov,
    file: RegisteredFile,
    random: u64,
    answered: u64,
    longest: Duration,
}

impl Load {
    /// `BATCH` different blocks.
    fn blocks(&mut self) -> Vec<u64> {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let first = (self.random >> 33) % BLOCKS;
        (0..BATCH as u64).map(|i| (first + i * 17) % BLOCKS).collect()
    }

    /// One batch through `ring`; every request must be answered once, in full.
    fn run(&mut self, ring: &mut Ring, blocks: &[u64]) -> Result<(), String> {
        let requests: Vec<Request> = blocks
            .iter()
            .enumerate()
            .map(|(i, n)| Request {
                file: self.file.id(),
                file_offset: n * BLOCK as u64,
                len: BLOCK as u64,
                iov_offset: (i * BLOCK) as u64,
                userdata: i as u64,
            })
            .collect();
        let begun = Instant::now();
        let prepared = ring.prep_batch(&self.iov, &requests);
        if prepared.queued != requests.len() {
            return Err(format!("only {} requests were queued: {:?}", prepared.queued, prepared.stopped));
        }
        ring.submit().map_err(|e| e.to_string())?;
        let mut seen = [false; BATCH];
        let mut count = 0;
        while count < requests.len() {
            let mut cqes = [Cqe::default(); BATCH];
            let left = requests.len() - count;
            let timeout = Some(Duration::from_secs(20));
            let got = ring.wait(left, &mut cqes[..left], timeout).map_err(|e| e.to_string())?;
            if got == 0 {
                return Err(format!("{left} requests were not answered in 20 s"));
            }
            for cqe in &cqes[..got] {
                let slot = seen.get_mut(cqe.userdata as usize).ok_or("an answer that nobody asked for")?;
                if std::mem::replace(slot, true) {
                    return Err(format!("request {} was answered twice", cqe.userdata));
                }
                if cqe.result != BLOCK as i64 {
                    return Err(format!("request {} has the result {}", cqe.userdata, cqe.result));
                }
            }
            count += got;
        }
        self.answered += count as u64;
        self.longest = self.longest.max(begun.elapsed());
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: verify FILE [SECONDS]")?;
    let end = args.next().map(|s| s.parse()).transpose()?.map(|s| Instant::now() + Duration::from_secs(s));
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
    file.set_len(BLOCKS * BLOCK as u64)?;
    let mount = Mount::of(&path)?;
    let mut load = Load {
        iov: Iov::create(&mount, BATCH * BLOCK, 0, -1)?,
        file: RegisteredFile::new(&file)?,
        random: u64::from(std::process::id()),
        answered: 0,
        longest: Duration::ZERO,
    };
    let mut reads = Ring::create(&mount, &RingOptions::read(BATCH as u32 * 2))?;
    let mut writes = Ring::create(&mount, &RingOptions::write(BATCH as u32 * 2))?;
    println!("running");
    std::io::stdout().flush()?;
    let mut block = vec![0; BLOCK];
    for version in 1.. {
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        let blocks = load.blocks();
        for (i, n) in blocks.iter().enumerate() {
            fill(&mut block, *n, version);
            load.iov.write_at(i * BLOCK, &block).ok_or("outside the Iov")?;
        }
        load.run(&mut writes, &blocks)?;
        load.iov.write_at(0, &vec![0xee; BATCH * BLOCK]).ok_or("outside the Iov")?;
        load.run(&mut reads, &blocks)?;
        let mut read = vec![0; BLOCK];
        for (i, n) in blocks.iter().enumerate() {
            fill(&mut block, *n, version);
            load.iov.read_at(i * BLOCK, &mut read).ok_or("outside the Iov")?;
            if read != block {
                return Err(format!("block {n} of version {version} holds something else").into());
            }
        }
    }
    println!("{} requests answered, longest batch {:?}", load.answered, load.longest);
    Ok(())
}
