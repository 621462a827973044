//! What the transport sees of a slot.

use std::os::fd::{AsFd, BorrowedFd};

use isopod_virtio::{
    Activation, ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError, DeviceType,
    Event, Rings, feature,
};
use smallvec::SmallVec;

use super::{CONTROL_LIMITS, Counters, Net, NetConfig, NetState};

pub(super) const CSUM: u64 = 1 << 0;
pub(super) const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
pub(super) const GUEST_TSO4: u64 = 1 << 7;
pub(super) const GUEST_TSO6: u64 = 1 << 8;
pub(super) const HOST_TSO4: u64 = 1 << 11;
pub(super) const HOST_TSO6: u64 = 1 << 12;
pub(super) const MRG_RXBUF: u64 = 1 << 15;
pub(super) const STATUS: u64 = 1 << 16;
pub(super) const CTRL_VQ: u64 = 1 << 17;
pub(super) const MQ: u64 = 1 << 22;

/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;

const QUEUE_SIZE: u16 = 256;
impl Device for Net {
    type State = NetState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        let one = feature::EVENT_IDX
            | feature::INDIRECT_DESC
            | CSUM
            | GUEST_CSUM
            | MTU
            | MAC
            | GUEST_TSO4
            | GUEST_TSO6
            | HOST_TSO4
            | HOST_TSO6
            | MRG_RXBUF
            | STATUS;
        match self.config.pairs {
            1 => one,
            _ => one | CTRL_VQ | MQ,
        }
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        let mut sizes = SmallVec::from_elem(QUEUE_SIZE, 2 * usize::from(self.config.pairs));
        if self.config.pairs > 1 {
            sizes.push(16);
        }
        sizes
    }

    /// `struct virtio_net_config` up to the MTU.
    fn config(&self) -> ConfigSpace {
        let NetConfig {
            mac, mtu, pairs, ..
        } = self.config;
        let status = if !self.link.is_up() { 0 } else { LINK_UP };
        let mut space = ConfigSpace::from_slice(&mac);
        for field in [status, pairs, mtu] {
            space.extend_from_slice(&field.to_le_bytes());
        }
        space
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        self.features = Some(activation.features);
        self.link
            .set_offload(activation.features)
            .map_err(|source| DeviceError::Host {
                act: "set the tap device's offloads",
                source,
            })
    }

    fn handle(&mut self, _event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if rings.negotiated(CTRL_VQ) {
            // Without MQ there is one pair, and the control queue is next to it (5.1.2).
            let pairs = match rings.negotiated(MQ) {
                true => usize::from(self.config.pairs),
                false => 1,
            };
            rings.answer_each(2 * pairs, CONTROL_LIMITS, |chain| self.command(chain))?;
        }
        match self.link.is_up() {
            true => self.exchange(rings),
            false => self.drain(rings),
        }
    }

    fn reset(&mut self) {
        let Self {
            config: _,
            link,
            // Not refilled: a driver could reset its way around the limits.
            receive: _,
            send: _,
            timer,
            enabled,
            features,
            counters: _,
        } = self;
        link.reset();
        timer.stop();
        *enabled = 1;
        *features = None;
    }

    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.link.as_fd())
    }

    fn save(&self) -> NetState {
        NetState {
            mac: self.config.mac,
            mtu: self.config.mtu,
            pairs: self.config.pairs,
            enabled: self.enabled,
        }
    }

    /// The address is the saved one's: the driver has read it.
    fn restore(&mut self, state: NetState) -> Result<(), DeviceStateError> {
        let NetState {
            mac,
            mtu,
            pairs,
            enabled,
        } = state;
        if pairs != self.config.pairs || !(1..=pairs).contains(&enabled) {
            return Err(DeviceStateError {
                field: "the queue pairs",
                saved: format!("{enabled} of {pairs}"),
                here: self.config.pairs.to_string(),
            });
        }
        (self.config.mac, self.config.mtu) = (mac, mtu);
        self.enabled = enabled;
        Ok(())
    }

    fn counters(&self) -> DeviceCounters {
        let Counters {
            rx_packets,
            rx_bytes,
            rx_dropped,
            tx_packets,
            tx_bytes,
            tx_dropped,
            guest_errors,
            throttled,
        } = self.counters;
        vec![
            ("rx_packets", rx_packets),
            ("rx_bytes", rx_bytes),
            ("rx_dropped", rx_dropped),
            ("tx_packets", tx_packets),
            ("tx_bytes", tx_bytes),
            ("tx_dropped", tx_dropped),
            ("guest_errors", guest_errors),
            ("throttled", throttled),
        ]
    }
}
