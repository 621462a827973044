//! The vsock device of `isopod-devices` behind vhost-user, for QEMU.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
};

use crate::queue::TRANSPORT_QUEUE_SIZE;
use isopod_devices::vsock::{Cause, Signals, VsockDevice, VsockQueues};
use isopod_memory::{DirtyBitmap, GuestAddressSpace, GuestMemoryHandle};
use isopod_virtio::QueueT;
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
    /// No driver has been served yet.
    fresh: bool,
}

impl VsockBackend {
    /// Puts the device behind vhost-user. `memory` is the handle that the daemon updates in place.
    pub fn new(device: VsockDevice, memory: GuestMemoryHandle) -> Self {
        Self {
            device,
            memory,
            fresh: true,
        }
    }

    /// A driver whose rings were used before it came here is a restored machine's: what it was connected
    /// to went with the process that served it then.
    fn meet(&mut self, vrings: &[Vring]) {
        let used = |vring: &Vring| vring.queue_next_avail() != 0;
        if std::mem::take(&mut self.fresh) && vrings.iter().any(used) {
            self.device.follow();
        }
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
            | VhostUserProtocolFeatures::RESET_DEVICE
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
        let served = [rx, tx, event_ring]
            .iter()
            .any(|vring| vring.get_ref().get_queue().ready());
        if served {
            self.meet(vrings);
        }
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use isopod_devices::vsock::VsockConfig;
    use isopod_memory::{Bytes, GuestAddress};
    use rstest::rstest;

    use super::*;

    const RINGS: [u64; 3] = [0x1000, 0x4000, 0x7000];
    const BUFFER: u64 = 0xa000;

    /// What the event queue of a driver got that had taken `before` buffers elsewhere.
    #[rstest]
    #[case::new(0, 0)]
    #[case::restored(3, 1)]
    fn a_driver_that_ran_elsewhere_is_told_that_its_connections_are_gone(
        #[case] before: u16,
        #[case] events: u16,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
        let config = VsockConfig {
            guest_cid: 5,
            connect_dir: dir.path().into(),
        };
        let memory = isopod_memory::anonymous(&[(0, 0x1_0000)]).unwrap();
        let handle = GuestMemoryHandle::new(memory.clone());
        let device = VsockDevice::new(config, listener).unwrap();
        let mut back_end = VsockBackend::new(device, handle.clone());
        let vrings: Vec<Vring> = RINGS
            .iter()
            .map(|at| {
                let vring = Vring::new(handle.clone(), 16).unwrap();
                vring.set_queue_size(16);
                vring.set_queue_info(*at, at + 0x1000, at + 0x2000).unwrap();
                vring.set_queue_ready(true);
                vring
            })
            .collect();
        // The host's packets came in so many buffers of the first queue.
        let index = |ring: u64| GuestAddress(ring + 0x1002);
        memory.write_obj(before, index(RINGS[0])).unwrap();
        vrings[0].set_queue_next_avail(before);
        // One buffer of eight bytes for an event.
        let event = RINGS[2];
        memory.write_obj(BUFFER, GuestAddress(event)).unwrap();
        memory.write_obj(8u32, GuestAddress(event + 8)).unwrap();
        memory.write_obj(2u16, GuestAddress(event + 12)).unwrap();
        memory.write_obj(1u16, index(event)).unwrap();

        back_end.handle_event(0, EventSet::IN, &vrings, 0).unwrap();
        back_end.handle_event(2, EventSet::IN, &vrings, 0).unwrap();
        let told: u16 = memory.read_obj(GuestAddress(event + 0x2002)).unwrap();
        assert_eq!(told, events);
    }
}
