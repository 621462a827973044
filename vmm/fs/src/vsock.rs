//! The vsock device of `isopod-devices` behind vhost-user, for QEMU.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
};

use crate::queue::TRANSPORT_QUEUE_SIZE;
use isopod_devices::vsock::{Cause, Signals, VsockDevice, VsockQueues};
use isopod_memory::{DirtyBitmap, GuestAddressSpace, GuestMemoryHandle};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringEpollHandler, VringMutex, VringT};
use vmm_sys_util::epoll::EventSet;

type Vring = VringMutex<GuestMemoryHandle>;

/// The event number of the device's own descriptor: after the queues and the library's exit event.
const HOST_EVENT: u16 = VsockDevice::QUEUES as u16 + 1;

/// One vsock device, owned by one worker thread.
pub struct VsockBackend {
    device: VsockDevice,
    memory: GuestMemoryHandle,
}

impl VsockBackend {
    /// Puts the device behind vhost-user. `memory` is the handle that the daemon updates in place.
    pub fn new(device: VsockDevice, memory: GuestMemoryHandle) -> Self {
        Self { device, memory }
    }

    /// Lets the worker thread watch the device's descriptor.
    ///
    /// # Errors
    /// epoll_ctl(2) failed.
    pub fn watch(worker: &VringEpollHandler<Arc<Mutex<Self>>>, device: &OwnedFd) -> io::Result<()> {
        worker.register_listener(device.as_raw_fd(), EventSet::IN, HOST_EVENT.into())
    }
}

impl VhostUserBackendMut for VsockBackend {
    type Bitmap = DirtyBitmap;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        VsockDevice::QUEUES
    }

    fn max_queue_size(&self) -> usize {
        TRANSPORT_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.device.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&mut self) {
        self.device.reset();
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // The rings know it themselves.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.device.config_space();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = usize::try_from(size)
            .ok()
            .and_then(|size| start.checked_add(size));
        let bytes = end.and_then(|end| space.get(start..end));
        // An empty answer tells the front end that the range is wrong.
        bytes.map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&mut self, _memory: GuestMemoryHandle) -> io::Result<()> {
        // The same handle as ours, already updated.
        Ok(())
    }

    fn handle_event(
        &mut self,
        event: u16,
        events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        if events != EventSet::IN {
            return Err(io::Error::other("unexpected event on a vsock descriptor"));
        }
        let [rx, tx, event_ring] = vrings else {
            return Err(io::Error::other("not three vsock queues"));
        };
        let cause = if event == HOST_EVENT {
            Cause::Host
        } else {
            Cause::Queue
        };
        let memory = self.memory.memory();
        let signals = {
            let (mut rx, mut tx, mut event_ring) =
                (rx.get_mut(), tx.get_mut(), event_ring.get_mut());
            let queues = VsockQueues {
                rx: rx.get_queue_mut(),
                tx: tx.get_queue_mut(),
                event: event_ring.get_queue_mut(),
            };
            self.device.handle(cause, &memory, queues)
        };
        let Signals {
            rx: rx_signal,
            tx: tx_signal,
            event: event_signal,
        } = signals;
        for (wanted, vring) in [(rx_signal, rx), (tx_signal, tx), (event_signal, event_ring)] {
            if wanted {
                vring.signal_used_queue()?;
            }
        }
        Ok(())
    }
}
