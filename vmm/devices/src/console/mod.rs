//! The console device (virtio 1.2, 5.3): the guest's log, and a port for a person who debugs it.
//!
//! ```text
//!   guest                                      host
//!   hvc0  (port 0)  --tx 1-->  Tail (last lines), log reader      never waits for the host
//!                   <--rx 0--  its input, if any
//!   /dev/virtio-ports/isopod.debug
//!         (port 1)  --tx 5-->  the program that is attached        waits for a slow one
//!                   <--rx 4--
//!   control         <--2 3-->  which ports there are and who has them open
//! ```
//!
//! A driver that does not negotiate `MULTIPORT` has port 0 only. What is said at the interactive port waits
//! at the host's end until a program of the guest has opened it:
//!
//! ```text
//!                        peer comes                        guest opens
//!   nobody (thrown away) ----------> output goes to it ------------------> input, too
//!          ^-- peer leaves, or is taken out --|  ^------- guest closes ------|
//! ```
//!
//! | file | job |
//! |---|---|
//! | `mod.rs` | queues to ports |
//! | `port.rs` | bytes between a port's rings and its peer |
//! | `control.rs` | the conversation about ports |
//! | `tail.rs` | the last lines |

mod control;
mod port;
mod tail;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use isopod_virtio::{
    ChainLimits, ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError, DeviceType,
    Event, Rings, feature,
};
use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

pub use control::INTERACTIVE_NAME;
use control::{Control, MESSAGE, Message, PORTS};
use port::Port;
pub use port::{MAX_OUTPUT, Peer};

/// Bytes of the guest's last lines that are kept.
pub const TAIL: usize = 64 << 10;

/// `VIRTIO_CONSOLE_F_MULTIPORT`.
const MULTIPORT: u64 = 1 << 1;

/// rx and tx of port 0, control, rx and tx of port 1 (5.3.2).
const QUEUES: [u16; 6] = [64, 64, 16, 16, 64, 64];
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;
/// The interactive one.
const INTERACTIVE: usize = 1;
/// rx and tx by port.
const PORT_QUEUES: [(usize, usize); PORTS] = [(0, 1), (4, 5)];

const CONTROL_LIMITS: ChainLimits = ChainLimits {
    max_readable: 256,
    max_writable: u32::MAX,
    indirect: false,
};

/// A console with two ports.
pub struct Console {
    ports: [Port; PORTS],
    control: Control,
    epoll: OwnedFd,
    guest_errors: u64,
}

/// The conversation about ports. Who was attached is gone, what was written is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    control: Control,
}

impl Console {
    /// A console that nobody listens to but its [`tail`](Self::tail).
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ports: [Port::new(TAIL), Port::new(0)],
            control: Control::default(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            guest_errors: 0,
        })
    }

    /// Who gets the log, besides the tail, and gives the console's input.
    pub fn set_log(&mut self, peer: Option<Peer>) {
        let [log, _] = &mut self.ports;
        log.set_peer(peer, &self.epoll);
    }

    /// Who is at the interactive port; the guest is told.
    pub fn set_interactive(&mut self, peer: Option<Peer>) {
        let [_, interactive] = &mut self.ports;
        interactive.set_peer(peer, &self.epoll);
    }

    /// Whether somebody is at the interactive port.
    #[must_use]
    pub fn is_attended(&self) -> bool {
        let [_, interactive] = &self.ports;
        interactive.is_open()
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        let [log, _] = &self.ports;
        log.tail.text()
    }

    /// What the driver says of its ports.
    fn hear(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let Self {
            ports: _,
            control,
            epoll: _,
            guest_errors,
        } = self;
        rings.answer_each(CONTROL_TX, CONTROL_LIMITS, |mut chain| {
            let mut message = [0; MESSAGE];
            let understood = chain.readable.read(&mut message).is_ok()
                && control.hear(Message::from_wire(message));
            *guest_errors += u64::from(!understood);
            0
        })?;
        Ok(())
    }

    /// What it is to know of them.
    fn tell(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let Self {
            ports,
            control,
            epoll: _,
            guest_errors,
        } = self;
        for (index, port) in ports.iter().enumerate() {
            // The log is always open: a guest that finds it closed waits with its output.
            control.set_host_open(index, index == 0 || port.is_open());
        }
        rings.with(CONTROL_RX, CONTROL_LIMITS, |queue| {
            while control.has_news() {
                let Some(mut chain) = queue.pop()? else {
                    queue.listen()?;
                    break;
                };
                let Some(message) = control.next() else {
                    break;
                };
                let wire = message.to_wire();
                let written = match chain.writable.write(&wire) {
                    Ok(()) => wire.len() as u32,
                    Err(_) => {
                        *guest_errors += 1;
                        0
                    }
                };
                queue.complete(chain.head, written)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

impl Device for Console {
    type State = ConsoleState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        MULTIPORT | feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        SmallVec::from_slice(&QUEUES)
    }

    /// `struct virtio_console_config`: no size, the number of ports, no emergency write.
    fn config(&self) -> ConfigSpace {
        let mut space: ConfigSpace = smallvec![0; 4];
        space.extend_from_slice(&(PORTS as u32).to_le_bytes());
        space.extend_from_slice(&[0; 4]);
        space
    }

    fn handle(&mut self, _event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let multiport = rings.negotiated(MULTIPORT);
        if multiport {
            self.hear(rings)?;
        }
        let [log, interactive] = &mut self.ports;
        let [of_log, of_interactive] = PORT_QUEUES;
        // A terminal of the guest's kernel: nothing opens it in particular.
        log.exchange(rings, of_log, true, &self.epoll)?;
        if multiport {
            let listens = self.control.is_guest_open(INTERACTIVE);
            interactive.exchange(rings, of_interactive, listens, &self.epoll)?;
            self.tell(rings)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        let Self {
            ports,
            control,
            epoll,
            guest_errors: _,
        } = self;
        for port in ports {
            port.reset(epoll);
        }
        *control = Control::default();
    }

    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn save(&self) -> ConsoleState {
        ConsoleState {
            control: self.control.clone(),
        }
    }

    fn restore(&mut self, ConsoleState { control }: ConsoleState) -> Result<(), DeviceStateError> {
        if !control.is_plausible() {
            return Err(DeviceStateError {
                field: "the control messages",
                saved: "more than a device says".into(),
                here: "fewer".into(),
            });
        }
        self.control = control;
        Ok(())
    }

    fn counters(&self) -> DeviceCounters {
        let [log, interactive] = &self.ports;
        vec![
            ("log_bytes", log.written),
            ("log_lost", log.lost),
            ("log_read", log.read),
            ("interactive_written", interactive.written),
            ("interactive_read", interactive.read),
            ("guest_errors", self.guest_errors),
        ]
    }
}

#[cfg(test)]
mod tests;
