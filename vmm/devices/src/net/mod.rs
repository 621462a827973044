//! The network device (virtio 1.2, 5.1): queue pairs of a guest joined to the queues of a tap device.
//!
//! ```text
//!   guest                                                   host
//!   tx 1, 3, ..  --header checked, one copy-->  tap queue   (IFF_TAP, IFF_VNET_HDR, one
//!   rx 0, 2, ..  <--one or more buffers-------  tap queue    descriptor per pair)
//!   control      <--how many pairs are in use
//! ```
//!
//! A [`Net`] is a slot: its link is down until tap queues arrive, and again after they have left. Who
//! may send what to whom is the host's business (the tap device's bridge, filters); the device checks
//! only what the host's kernel would believe: the header before each packet.
//!
//! All pairs are served by the device's one thread. They let a guest with several CPUs use its own
//! queues without locks; the host's share is one CPU per device.
//!
//! | file | job |
//! |---|---|
//! | `mod.rs` | the slot: its link, control queue, who waits for what |
//! | `device.rs` | what the transport sees: features, configuration, state |
//! | `link.rs` | the tap device's queues, and which are watched |
//! | `pair.rs` | packets of one pair |
//! | `header.rs` | what precedes a packet |

mod device;
mod header;
mod link;
mod pair;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use isopod_memory::tap;
use isopod_virtio::{Chain, ChainLimits, DeviceError, Rings};
use serde::{Deserialize, Serialize};

use crate::{
    rate::{Limiter, RateLimit},
    timer::Timer,
};
pub use header::HEADER;
use link::Link;
pub use pair::MAX_PACKET;
use pair::Next;

/// Pairs at most: the transport's queues are few, and one thread serves them.
pub const MAX_PAIRS: u16 = 8;

const CONTROL_LIMITS: ChainLimits = ChainLimits {
    max_readable: 64,
    max_writable: 64,
    indirect: false,
};

/// What distinguishes one network slot from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The guest's address: of one station, not all zero.
    pub mac: [u8; 6],
    /// The largest packet without its Ethernet header, 68 to 65535.
    pub mtu: u16,
    /// Queue pairs, 1 to [`MAX_PAIRS`].
    pub pairs: u16,
    /// What the guest may get.
    pub receive: RateLimit,
    /// What the guest may send.
    pub send: RateLimit,
}

/// A slot or its link could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A group address, or none.
    #[error("{0:02x?} is no address of one station")]
    Mac([u8; 6]),
    /// Out of range.
    #[error("an MTU of {0}: 68 to 65535 are possible")]
    Mtu(u16),
    /// Out of range, or as many tap queues as pairs are needed.
    #[error("{0} queue pairs")]
    Pairs(usize),
    /// A system call on the way.
    #[error("cannot {act}: {source}")]
    System {
        /// What was attempted.
        act: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

fn system(act: &'static str) -> impl Fn(io::Error) -> NetError {
    move |source| NetError::System { act, source }
}

/// What happened, for metrics.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    rx_packets: u64,
    rx_bytes: u64,
    /// Too long for the driver's buffers, or too short to be packets.
    rx_dropped: u64,
    tx_packets: u64,
    tx_bytes: u64,
    /// The tap device did not take them.
    tx_dropped: u64,
    guest_errors: u64,
    throttled: u64,
}

/// A slot for a network.
#[derive(Debug)]
pub struct Net {
    config: NetConfig,
    link: Link,
    receive: Limiter,
    send: Limiter,
    timer: Timer,
    /// Pairs that the driver uses.
    enabled: u16,
    /// Both sides' features, of an active device.
    features: Option<u64>,
    counters: Counters,
}

/// A slot as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    mac: [u8; 6],
    mtu: u16,
    pairs: u16,
    enabled: u16,
}

impl Net {
    /// A slot without a link.
    ///
    /// # Errors
    /// When the configuration cannot be, or the host has no descriptor left.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let [first, ..] = config.mac;
        if first & 1 != 0 || config.mac == [0; 6] {
            return Err(NetError::Mac(config.mac));
        }
        if config.mtu < 68 {
            return Err(NetError::Mtu(config.mtu));
        }
        if !(1..=MAX_PAIRS).contains(&config.pairs) {
            return Err(NetError::Pairs(config.pairs.into()));
        }
        let timer = Timer::new().map_err(system("make a timer"))?;
        let now = Instant::now();
        Ok(Self {
            receive: Limiter::new(config.receive, now),
            send: Limiter::new(config.send, now),
            config,
            link: Link::new(timer.as_fd()).map_err(system("make an epoll set"))?,
            timer,
            enabled: 1,
            features: None,
            counters: Counters::default(),
        })
    }

    /// Brings the link up: the queues of one tap device, one for each pair, opened with `IFF_TAP`,
    /// `IFF_NO_PI` and `IFF_VNET_HDR`. They are made non-blocking, and their header 12 bytes long.
    ///
    /// # Errors
    /// When there are not as many queues as pairs, or one is no such queue.
    pub fn connect(&mut self, queues: Vec<OwnedFd>) -> Result<(), NetError> {
        for queue in &queues {
            tap::set_header_length(queue.as_fd(), HEADER as i32)
                .map_err(system("set the length of the tap device's header"))?;
        }
        self.join(queues)
    }

    /// As [`connect`](Self::connect), of anything that gives and takes packets with a header of 12 bytes.
    ///
    /// # Errors
    /// When there are not as many queues as pairs, or one cannot take what the driver negotiated.
    pub fn join(&mut self, queues: Vec<OwnedFd>) -> Result<(), NetError> {
        if queues.len() != usize::from(self.config.pairs) {
            return Err(NetError::Pairs(queues.len()));
        }
        self.disconnect();
        self.link
            .open(queues)
            .map_err(system("make a tap queue non-blocking"))?;
        let offloads = match self.features {
            Some(features) => self.link.set_offload(features),
            None => Ok(()),
        };
        if offloads.is_err() {
            self.disconnect();
        }
        offloads.map_err(system("set the tap device's offloads"))
    }

    /// Whether the link is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.is_up()
    }

    /// Takes the link down.
    pub fn disconnect(&mut self) {
        self.link.close();
        self.timer.stop();
    }

    /// Limits what passes from now on.
    pub fn limit(&mut self, receive: RateLimit, send: RateLimit) {
        let now = Instant::now();
        self.receive = Limiter::new(receive, now);
        self.send = Limiter::new(send, now);
        (self.config.receive, self.config.send) = (receive, send);
    }

    /// Moves packets both ways; who is to be waited for.
    fn exchange(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let enabled = usize::from(self.enabled).max(1);
        let mut wait: Option<Duration> = None;
        let mut gone = false;
        for index in 0..self.link.pairs() {
            let Self {
                link,
                receive,
                send,
                counters,
                ..
            } = self;
            let Some(pair) = link.pair(index) else {
                continue;
            };
            // Packets of a pair that the driver does not use go to one that it does.
            let rx = 2 * (index % enabled);
            let received = pair.receive(rings, rx, receive, counters)?;
            let sent = match index < enabled {
                true => pair.send(rings, 2 * index + 1, send, counters)?,
                false => Next::Driver,
            };
            link.watch(index, received == Next::Packets);
            for (next, queue) in [(received, rx), (sent, 2 * index + 1)] {
                match next {
                    Next::Time(time) => wait = Some(wait.map_or(time, |wait| wait.min(time))),
                    Next::Again => rings.again(queue),
                    Next::Gone => gone = true,
                    Next::Packets | Next::Driver => {}
                }
            }
        }
        match wait {
            Some(wait) => self.timer.arm(wait),
            None => self.timer.stop(),
        }
        if gone {
            tracing::warn!("net: the tap device is gone");
            self.disconnect();
        }
        Ok(())
    }

    /// Without a link, packets go nowhere.
    fn drain(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let limits = ChainLimits {
            max_readable: MAX_PACKET as u32,
            ..CONTROL_LIMITS
        };
        for index in 0..usize::from(self.config.pairs) {
            rings.answer_each(2 * index + 1, limits, |_| {
                self.counters.tx_dropped += 1;
                0
            })?;
        }
        Ok(())
    }

    /// A command of the driver's: class, command, data; then the answer (5.1.6.5).
    fn command(&mut self, mut chain: Chain<'_>) -> u32 {
        let mut command = [0; 4];
        let understood = chain.readable.left() == 4 && chain.readable.read(&mut command).is_ok();
        // VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
        let pairs = match command {
            [4, 0, low, high] if understood => u16::from_le_bytes([low, high]),
            _ => 0,
        };
        let possible = (1..=self.config.pairs).contains(&pairs);
        if possible {
            self.enabled = pairs;
        } else {
            self.counters.guest_errors += 1;
        }
        let answer = u8::from(!possible);
        chain.writable.write(&[answer]).map_or(0, |()| 1)
    }
}

#[cfg(test)]
mod tests;
