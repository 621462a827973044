//! One queue pair and the queue of the tap device that it belongs to: packets both ways.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use isopod_virtio::{ChainLimits, DeviceError, LiveQueue, QueueError, Rings, Writable};
use rustix::io::Errno;
use smallvec::SmallVec;

use super::{
    Counters,
    device::MRG_RXBUF,
    header::{HEADER, clean, set_buffers},
};
use crate::rate::Limiter;

/// The largest packet: 64 KiB of IP in an Ethernet frame with a tag, and the header.
pub const MAX_PACKET: usize = HEADER + 65_535 + 18;
/// Packets in each direction in one round.
const PACKETS_PER_ROUND: usize = 64;
/// Buffers that one packet is spread over at most. Linux's are 1.5 KiB or a page.
const MAX_BUFFERS: usize = 64;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: MAX_PACKET as u32,
    max_writable: u32::MAX,
    indirect: false,
};

/// What the device does for a pair next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for packets of the tap device.
    Packets,
    /// Wait for the driver.
    Driver,
    /// Wait for the rate limit.
    Time(Duration),
    /// Go on at once, after others.
    Again,
    /// The tap device is gone.
    Gone,
}

/// One pair's share of the host's side.
#[derive(Debug)]
pub struct Pair {
    tap: OwnedFd,
    /// A packet for the guest, and its length; 0 if none waits for room.
    incoming: Box<[u8]>,
    waiting: usize,
    /// Where a guest's packets are copied to, so that it cannot change what was checked.
    outgoing: Box<[u8]>,
}

impl Pair {
    pub fn new(tap: OwnedFd) -> Self {
        Self {
            tap,
            incoming: vec![0; MAX_PACKET].into(),
            waiting: 0,
            outgoing: vec![0; MAX_PACKET].into(),
        }
    }

    pub fn tap(&self) -> &OwnedFd {
        &self.tap
    }

    pub fn reset(&mut self) {
        let Self {
            tap: _,
            incoming: _,
            waiting,
            outgoing: _,
        } = self;
        *waiting = 0;
    }

    /// Packets for the guest, into the queue `rx`.
    pub fn receive(
        &mut self,
        rings: &mut Rings<'_>,
        rx: usize,
        limiter: &mut Limiter,
        counters: &mut Counters,
    ) -> Result<Next, DeviceError> {
        let mergeable = rings.negotiated(MRG_RXBUF);
        let next = rings.with(rx, LIMITS, |queue| {
            queue.quiet();
            for _ in 0..PACKETS_PER_ROUND {
                if self.waiting == 0 {
                    if let Some(wait) = limiter.wait(Instant::now()) {
                        counters.throttled += 1;
                        return Ok(Next::Time(wait));
                    }
                    match rustix::io::read(&self.tap, &mut *self.incoming) {
                        Ok(bytes) if bytes > HEADER => {
                            limiter.charge(bytes as u64);
                            self.waiting = bytes;
                        }
                        Ok(_) => {
                            counters.rx_dropped += 1;
                            continue;
                        }
                        Err(Errno::AGAIN | Errno::INTR) => return Ok(Next::Packets),
                        Err(_) => return Ok(Next::Gone),
                    }
                }
                let packet = self.incoming.get_mut(..self.waiting).unwrap_or_default();
                match deliver(packet, queue, mergeable)? {
                    Delivered::Yes => {
                        counters.rx_packets += 1;
                        counters.rx_bytes += self.waiting as u64;
                        self.waiting = 0;
                    }
                    Delivered::TooLong => {
                        counters.rx_dropped += 1;
                        self.waiting = 0;
                    }
                    Delivered::NoRoom if queue.listen()? => queue.quiet(),
                    Delivered::NoRoom => return Ok(Next::Driver),
                }
            }
            Ok(Next::Again)
        })?;
        Ok(next.unwrap_or(Next::Driver))
    }

    /// Packets of the guest, from the queue `tx`.
    pub fn send(
        &mut self,
        rings: &mut Rings<'_>,
        tx: usize,
        limiter: &mut Limiter,
        counters: &mut Counters,
    ) -> Result<Next, DeviceError> {
        let features = rings.features();
        let next = rings.with(tx, LIMITS, |queue| {
            queue.quiet();
            for _ in 0..PACKETS_PER_ROUND {
                if let Some(wait) = limiter.wait(Instant::now()) {
                    counters.throttled += 1;
                    return Ok(Next::Time(wait));
                }
                let Some(mut chain) = queue.pop()? else {
                    if queue.listen()? {
                        queue.quiet();
                        continue;
                    }
                    return Ok(Next::Driver);
                };
                let bytes = chain.readable.left();
                limiter.charge(bytes as u64);
                let packet = self.outgoing.get_mut(..bytes).unwrap_or_default();
                let read = chain.readable.read(packet).is_ok();
                queue.complete(chain.head, 0)?;
                if !read || clean(packet, features).is_err() {
                    counters.guest_errors += 1;
                    continue;
                }
                match rustix::io::write(&self.tap, packet) {
                    Ok(_) => {
                        counters.tx_packets += 1;
                        counters.tx_bytes += bytes as u64;
                    }
                    // As on a wire that is busy or cut.
                    Err(_) => counters.tx_dropped += 1,
                }
            }
            Ok(Next::Again)
        })?;
        Ok(next.unwrap_or(Next::Driver))
    }
}

enum Delivered {
    Yes,
    NoRoom,
    /// For one buffer of this driver, or for as many as a packet may have.
    TooLong,
}

/// Writes a packet into the driver's buffers, all of it or nothing.
fn deliver(
    packet: &mut [u8],
    queue: &mut LiveQueue<'_, '_>,
    mergeable: bool,
) -> Result<Delivered, QueueError> {
    let Some(first) = queue.pop()? else {
        return Ok(Delivered::NoRoom);
    };
    let mut room = first.writable.left();
    let mut chains: SmallVec<[(u16, Writable<'_>); 4]> = SmallVec::new();
    chains.push((first.head, first.writable));
    let enough = loop {
        if room >= packet.len() {
            break Delivered::Yes;
        }
        if !mergeable || chains.len() == MAX_BUFFERS {
            break Delivered::TooLong;
        }
        let Some(chain) = queue.pop_another()? else {
            break Delivered::NoRoom;
        };
        room += chain.writable.left();
        chains.push((chain.head, chain.writable));
    };
    if !matches!(enough, Delivered::Yes) {
        for _ in &chains {
            queue.give_back();
        }
        return Ok(enough);
    }
    set_buffers(packet, chains.len() as u16);
    let mut rest: &[u8] = packet;
    for (head, mut writable) in chains {
        let (now, later) = rest.split_at(rest.len().min(writable.left()));
        // The room was counted before.
        let written = writable.write(now).map_or(0, |()| now.len() as u32);
        queue.complete(head, written)?;
        rest = later;
    }
    Ok(Delivered::Yes)
}
