//! What driver and device tell each other about ports (virtio 1.2, 5.3.6.2): pure, no rings.

use std::collections::VecDeque;

use isopod_virtio::ConfigSpace;
use serde::{Deserialize, Serialize};

/// Ports of the device: the console, and the interactive one.
pub const PORTS: usize = 2;
/// Length of a message, without a name.
pub const MESSAGE: usize = 8;
/// What the guest knows the interactive port by: `/dev/virtio-ports/` and this.
pub const INTERACTIVE_NAME: &str = "isopod.debug";

/// Messages that wait for the driver at most: two rounds of all there are. A driver that asks again
/// and again without making room is not answered again and again.
const MAX_WAITING: usize = 32;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// `struct virtio_console_control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    id: u32,
    event: u16,
    value: u16,
}

impl Message {
    /// Decodes what a driver sent.
    pub fn from_wire(bytes: [u8; MESSAGE]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            id: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// Encodes it, with the name that follows if it announces one.
    pub fn to_wire(self) -> ConfigSpace {
        let Self { id, event, value } = self;
        let mut bytes = ConfigSpace::from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&event.to_le_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
        if event == PORT_NAME {
            bytes.extend_from_slice(INTERACTIVE_NAME.as_bytes());
        }
        bytes
    }
}

/// A port as both sides know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// The driver has it.
    pub ready: bool,
    /// A program in the guest has it open.
    pub guest_open: bool,
    /// The driver was told that the host has it open.
    pub host_open: bool,
}

/// The conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// The ports.
    pub ports: [PortState; PORTS],
    waiting: VecDeque<Message>,
}

impl Control {
    /// A message of the driver's; false if it makes no sense.
    pub fn hear(&mut self, message: Message) -> bool {
        let Message { id, event, value } = message;
        if event == DEVICE_READY {
            // From the beginning, whatever was said before.
            *self = Self::default();
            if value == 1 {
                for id in 0..PORTS as u32 {
                    self.say(id, DEVICE_ADD, 1);
                }
            }
            return true;
        }
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(port) = self.ports.get_mut(index) else {
            return false;
        };
        match event {
            PORT_READY if value == 1 && !port.ready => {
                port.ready = true;
                if index == 0 {
                    self.say(id, CONSOLE_PORT, 1);
                } else {
                    self.say(id, PORT_NAME, 1);
                }
            }
            // Said twice, or the driver has no use for the port.
            PORT_READY => {}
            PORT_OPEN => port.guest_open = value == 1,
            _ => return false,
        }
        true
    }

    /// The host has a port open, or not any more; said once the driver has the port.
    pub fn set_host_open(&mut self, index: usize, open: bool) {
        if let Some(port) = self.ports.get_mut(index)
            && port.ready
            && port.host_open != open
        {
            port.host_open = open;
            self.say(index as u32, PORT_OPEN, open.into());
        }
    }

    /// Whether a program of the guest has the port open.
    pub fn is_guest_open(&self, index: usize) -> bool {
        self.ports.get(index).is_some_and(|port| port.guest_open)
    }

    fn say(&mut self, id: u32, event: u16, value: u16) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(Message { id, event, value });
        }
    }

    /// Whether the driver is to be told something.
    pub fn has_news(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next message for the driver.
    pub fn next(&mut self) -> Option<Message> {
        self.waiting.pop_front()
    }

    /// Whether a saved conversation is within the limits.
    pub fn is_plausible(&self) -> bool {
        self.waiting.len() <= MAX_WAITING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u32, event: u16, value: u16) -> Message {
        Message { id, event, value }
    }

    fn said(control: &mut Control) -> Vec<Message> {
        std::iter::from_fn(|| control.next()).collect()
    }

    #[test]
    fn ports_are_announced_named_and_opened_in_turn() {
        let mut control = Control::default();
        control.set_host_open(1, true);
        assert!(control.hear(message(0, DEVICE_READY, 1)));
        assert_eq!(
            said(&mut control),
            [message(0, DEVICE_ADD, 1), message(1, DEVICE_ADD, 1)]
        );
        assert!(control.hear(message(0, PORT_READY, 1)));
        assert!(control.hear(message(1, PORT_READY, 1)));
        assert_eq!(
            said(&mut control),
            [message(0, CONSOLE_PORT, 1), message(1, PORT_NAME, 1)]
        );
        control.set_host_open(1, true);
        control.set_host_open(1, true);
        assert_eq!(said(&mut control), [message(1, PORT_OPEN, 1)]);
        assert!(control.hear(message(1, PORT_OPEN, 1)));
        assert!(control.ports[1].guest_open);
        control.set_host_open(1, false);
        assert_eq!(said(&mut control), [message(1, PORT_OPEN, 0)]);
    }

    #[test]
    fn nonsense_is_refused_and_repetition_bounded() {
        let mut control = Control::default();
        for (id, event) in [
            (2, PORT_READY),
            (u32::MAX, PORT_OPEN),
            (0, DEVICE_ADD),
            (0, 99),
        ] {
            assert!(!control.hear(message(id, event, 1)));
        }
        for _ in 0..1000 {
            control.hear(message(0, DEVICE_READY, 1));
            control.hear(message(0, PORT_READY, 1));
            control.hear(message(0, PORT_READY, 1));
        }
        assert!(said(&mut control).len() <= MAX_WAITING);
    }

    #[test]
    fn a_message_keeps_its_form_on_the_wire() {
        let message = message(0x0102_0304, 5, 6);
        let wire = message.to_wire();
        assert_eq!(wire[..], [4, 3, 2, 1, 5, 0, 6, 0]);
        let bytes = wire[..].try_into().unwrap();
        assert_eq!(Message::from_wire(bytes), message);
        let name = Message {
            event: PORT_NAME,
            ..message
        };
        assert!(name.to_wire().ends_with(b"isopod.debug"));
    }
}
