//! The virtio-fs device behind vhost-user: chains of descriptors to FUSE requests and back
//! (virtio 1.2, 5.11). Queue 0 is the high-priority queue (FORGET, INTERRUPT), the others take
//! requests. One thread per queue, so that a slow request delays its own queue only.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use fuse_backend_rs::{
    abi::fuse_abi::{InHeader, Opcode, OutHeader},
    api::{filesystem::FileSystem, server::Server},
    transport::{Reader, VirtioFsWriter, Writer},
};
use isopod_memory::{Bytes, DirtyBitmap, GuestAddressSpace, GuestMemory, GuestMemoryHandle};
use isopod_virtio::{QueueT, feature};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use virtio_queue::DescriptorChain;
use vmm_sys_util::epoll::EventSet;

use crate::{
    patience::Patience,
    share::{Share, extra},
};

type Vring = VringMutex<GuestMemoryHandle>;
type Memory = <GuestMemoryHandle as GuestAddressSpace>::T;

/// Descriptors per queue that every device here accepts. QEMU's virtio-mmio transport offers the
/// driver its own maximum, whatever the device asked for.
pub const TRANSPORT_QUEUE_SIZE: usize = 1024;

/// One virtio-fs device.
pub struct FsBackend {
    server: Server<Arc<Share>>,
    share: Arc<Share>,
    request_queues: u16,
    memory: GuestMemoryHandle,
    /// By queue; each is touched by the queue's own thread only.
    patience: Vec<Mutex<Patience>>,
    /// Trouble was reported: once is enough, a guest can break its rings as often as it likes.
    reported: AtomicBool,
}

impl FsBackend {
    /// A device over a share. `memory` is the handle that the vhost-user daemon updates in place.
    pub fn new(share: Share, request_queues: u16, memory: GuestMemoryHandle) -> Self {
        let share = Arc::new(share);
        Self {
            server: Server::new(share.clone()),
            share,
            request_queues,
            memory,
            patience: (0..=request_queues).map(|_| Mutex::default()).collect(),
            reported: AtomicBool::new(false),
        }
    }

    fn report(&self, what: &str, error: &dyn std::fmt::Display) {
        if !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!("{what}: {error} (more of this is not reported)");
        }
    }

    /// Takes every chain that the queue holds now, or soon after, and answers it.
    fn serve(&self, vring: &Vring, patience: &mut Patience) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory();
        patience.woken(Instant::now());
        loop {
            vring.disable_notification()?;
            let mut answered = false;
            while let Some(chain) = pop(vring, &memory) {
                answered = true;
                let head = chain.head_index();
                let written = self.answer(&memory, chain);
                vring.add_used(head, written)?;
                if vring.needs_notification()?
                    && let Err(error) = vring.signal_used_queue()
                {
                    self.report("cannot signal the guest", &error);
                }
            }
            if answered && patience.outlasts(Instant::now(), || more(vring, &memory)) {
                continue;
            }
            // Rings whose indices make no sense always look as if there were more to do.
            if !vring.enable_notification()? || !answered {
                return Ok(());
            }
        }
    }

    /// Answers one request; returns the bytes written. Whatever the chain holds, the guest gets its
    /// descriptors back.
    fn answer(&self, memory: &GuestMemory, chain: DescriptorChain<Memory>) -> u32 {
        let again = chain.clone();
        let (Ok(mut reader), Ok(writer)) = (
            Reader::from_descriptor_chain(memory, chain.clone()),
            VirtioFsWriter::new(memory, chain),
        ) else {
            return 0;
        };
        if extra::knows(opcode(memory, again.clone())) {
            let Ok(header) = reader.read_obj::<InHeader>() else {
                return 0;
            };
            let answer = extra::answer(&self.share, &header, &mut reader);
            return reply(writer, &header, answer).unwrap_or(0);
        }
        match self
            .server
            .handle_message(reader, Writer::VirtioFs(writer), None, None)
        {
            Ok(written) => u32::try_from(written).unwrap_or(0),
            Err(_) => refuse(memory, again).unwrap_or(0),
        }
    }
}

/// The request's kind, read ahead; 0 (no request has it) if the first descriptor is too short for
/// that. (The guest may change it afterwards: it is only asked for to choose the parser.)
fn opcode(memory: &GuestMemory, mut chain: DescriptorChain<Memory>) -> u32 {
    let first = chain
        .next()
        .filter(|first| first.len() as usize >= size_of::<InHeader>());
    let header = first.and_then(|first| memory.read_obj::<InHeader>(first.addr()).ok());
    header.map(|header| header.opcode).unwrap_or(0)
}

fn reply(
    mut writer: VirtioFsWriter<'_, DirtyBitmap>,
    header: &InHeader,
    answer: io::Result<Vec<u8>>,
) -> Option<u32> {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let len = u32::try_from(size_of::<OutHeader>() + body.len()).ok()?;
    if writer.available_bytes() < len as usize {
        return None;
    }
    writer
        .write_obj(OutHeader {
            len,
            error,
            unique: header.unique,
        })
        .ok()?;
    writer.write_all(&body).ok()?;
    Some(len)
}

/// Whether the guest has offered a chain that was not taken; not once the front end has stopped the queue.
fn more(vring: &Vring, memory: &Memory) -> bool {
    let vring = vring.get_ref();
    let queue = vring.get_queue();
    vring.is_enabled()
        && queue.ready()
        && queue
            .avail_idx(&**memory, Ordering::Acquire)
            .is_ok_and(|offered| offered.0 != queue.next_avail())
}

fn pop(vring: &Vring, memory: &Memory) -> Option<DescriptorChain<Memory>> {
    vring
        .get_mut()
        .get_queue_mut()
        .pop_descriptor_chain(memory.clone())
}

/// The library gives some malformed requests back without an answer; the guest would wait for ever.
fn refuse(memory: &GuestMemory, chain: DescriptorChain<Memory>) -> Option<u32> {
    let mut reader = Reader::from_descriptor_chain(memory, chain.clone()).ok()?;
    let header: InHeader = reader.read_obj().ok()?;
    if header.opcode == Opcode::Forget as u32 || header.opcode == Opcode::BatchForget as u32 {
        return None;
    }
    let writer = VirtioFsWriter::new(memory, chain).ok()?;
    reply(
        writer,
        &header,
        Err(io::Error::from_raw_os_error(libc::EINVAL)),
    )
}

impl VhostUserBackend for FsBackend {
    type Bitmap = DirtyBitmap;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::from(self.request_queues) + 1
    }

    fn max_queue_size(&self) -> usize {
        TRANSPORT_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        feature::VERSION_1
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    /// The driver is gone, and with it all that it had open. The queues are stopped already; a request
    /// that is still being answered is waited for, because after this nobody writes to the guest's memory.
    fn reset_device(&self) {
        for patience in &self.patience {
            drop(patience.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.share.destroy();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The rings know it themselves.
    }

    fn update_memory(&self, _memory: GuestMemoryHandle) -> io::Result<()> {
        // The same handle as ours, already updated.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..=self.request_queues).map(|queue| 1 << queue).collect()
    }

    fn handle_event(
        &self,
        _event: u16,
        events: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        let (EventSet::IN, [vring]) = (events, vrings) else {
            // The kick descriptor is broken; an error here ends this queue's thread.
            return Err(io::Error::other("unexpected event on a queue"));
        };
        let Some(patience) = self.patience.get(thread) else {
            return Err(io::Error::other("unexpected queue"));
        };
        let mut patience = patience.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.serve(vring, &mut patience) {
            // The guest broke its own rings; nothing can be told to it. The other queues go on.
            self.report(&format!("queue {thread}"), &error);
        }
        Ok(())
    }
}
