//! What the fuzz targets do with their input. Each function panics when a property does not hold.

use usrbio_wire::mem::{RingMem, VecMem};
use usrbio_wire::peer::HostilePeer;
use usrbio_wire::{Args, ClientRing, Cqe, Geometry, IovName, RingFault, ServerRing, Slot};

/// Runs each input file that the command line names: how to look at a finding without libFuzzer.
pub fn replay(target: fn(&[u8])) -> std::io::Result<()> {
    for path in std::env::args_os().skip(1) {
        target(&std::fs::read(&path)?);
        println!("{}: no finding", path.display());
    }
    Ok(())
}

/// A name in `3fs-virt/iovs`: parsing does not panic, and what parses prints to a name that parses to the same.
pub fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    check_name(text);
    // Bytes seldom make a UUID: the parts are worth fuzzing behind a good one too.
    check_name(&format!("50f3d3cf-9a40-4a2e-8f0e-7a1db8d6c5e4{text}"));
}

fn check_name(text: &str) {
    match IovName::parse(text) {
        Ok(name) => assert_eq!(IovName::parse(&name.to_string()), Ok(name), "{text:?}"),
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{text:?}: {error}"),
    }
}

/// Input of the ring target, byte by byte; 0 after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// A ring, and a list of calls on it with writes of a hostile peer between them: no end panics, and the server
/// never holds more requests than the ring has entries.
pub fn ring(data: &[u8]) {
    let mut input = Input(data);
    let g = Geometry::for_entries(1 + u32::from(input.byte() % 16)).expect("1 to 16 entries");
    let mem = VecMem::new(g.file_len());
    let mut peer = HostilePeer::new(&mem, g, u64::from(input.byte()));
    let client = ClientRing::new(&mem, g);
    let mut server = ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO);
    while !input.0.is_empty() {
        call(&mut input, &mem, &client, &mut server, &mut peer);
        assert!(server.claimed() <= g.entries());
    }
}

fn call(
    input: &mut Input<'_>,
    mem: &VecMem,
    client: &ClientRing<&VecMem>,
    server: &mut ServerRing<&VecMem>,
    peer: &mut HostilePeer<&VecMem>,
) {
    let g = server.geometry();
    match input.byte() % 10 {
        0 => {
            let slot = u32::from(input.byte()) % g.entries();
            let args = Args { buf_off: input.word(), io_len: input.word(), ..Args::default() };
            let _ = client.push(slot, &args);
        }
        1 => {
            let mut out = vec![Cqe::default(); usize::from(input.byte() % 32)];
            assert!(client.pop(&mut out).unwrap_or(0) <= (g.entries() as usize).min(out.len()));
        }
        2 => assert!(client.completed().unwrap_or(0) <= g.entries()),
        3 => take(server),
        4 => {
            let _ = server.claim();
        }
        5 => {
            let n = u32::from(input.byte()).min(server.claimed());
            for i in 0..n {
                server.stage(i, &Cqe { result: i64::from(i), ..Cqe::default() });
            }
            server.publish(n);
        }
        6 => {
            let (sq_tail, cq_head) = server.after(0);
            *server = ServerRing::new(*server.mem(), g, sq_tail, cq_head);
            server.restore();
        }
        7 => {
            peer.step();
        }
        8 => mem.store_index(4 * usize::from(input.byte() % 4), input.word() as i32),
        _ => {
            let at = (usize::from(input.byte()) | usize::from(input.byte()) << 8) % (g.file_len() / 8);
            mem.store(8 * at, input.word());
        }
    }
}

/// What a daemon does in one turn: all that is published, up to the first fault.
fn take(server: &mut ServerRing<&VecMem>) {
    let g = server.geometry();
    let Ok(n) = server.published() else { return };
    assert!(server.claimed() + n <= g.entries());
    for _ in 0..n {
        match server.claim() {
            Ok((sqe, _)) => assert!((0..g.entries() as i32).contains(&sqe.index)),
            Err(RingFault::ArgsOutOfRange { raw, entries, .. }) => {
                assert!(!(0..entries as i32).contains(&raw));
                return;
            }
            Err(fault) => panic!("{fault} after {n} requests were found"),
        }
    }
}
