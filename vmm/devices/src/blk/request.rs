//! From a chain to one operation on the disk, and its status (virtio 1.2, 5.2.6).

use std::sync::Arc;

use isopod_memory::{GuestMemory, ring::Transfer};
use isopod_virtio::{Chain, DeviceCounters, Readable, Writable};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{
    BlkConfig, MAX_DISCARD,
    disk::{Disk, SECTOR},
    flight::{Flight, Kind, Pending},
};

/// Bytes of one read or write at most. Linux asks for 1280 KiB unless told otherwise.
pub const MAX_DATA: u32 = 16 << 20;
/// Bytes of one write-zeroes at most, which may have to be written.
pub const MAX_ZEROES: u64 = 4 << 20;

/// What happened, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub zeroes: u64,
    /// Requests that the disk failed.
    pub disk_errors: u64,
    /// Requests that broke a rule, or came while the slot was empty.
    pub guest_errors: u64,
    /// Times that the rate limit made the driver wait.
    pub throttled: u64,
}

impl Counters {
    pub fn named(&self) -> DeviceCounters {
        let Self {
            reads,
            read_bytes,
            writes,
            written_bytes,
            flushes,
            discards,
            zeroes,
            disk_errors,
            guest_errors,
            throttled,
        } = *self;
        vec![
            ("reads", reads),
            ("read_bytes", read_bytes),
            ("writes", writes),
            ("written_bytes", written_bytes),
            ("flushes", flushes),
            ("discards", discards),
            ("zeroes", zeroes),
            ("disk_errors", disk_errors),
            ("guest_errors", guest_errors),
            ("throttled", throttled),
        ]
    }
}

/// How a request ended.
pub(super) struct Served {
    /// Bytes written into the chain, the status among them.
    pub written: u32,
    /// Bytes moved to or from the disk; what a rate limit counts.
    pub bytes: u64,
}

enum Failure {
    /// The driver's: a range off the disk, a chain that is too short.
    Guest,
    /// The disk's, with the system's answer.
    Disk(std::io::Error),
    Unsupported,
}

impl From<isopod_virtio::ShortChain> for Failure {
    fn from(_: isopod_virtio::ShortChain) -> Self {
        Self::Guest
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

/// How far an operation came, and the bytes that it moves to or from the disk.
enum Step {
    Done(u64),
    Started(u64),
}

/// What a request needs besides its chain.
pub(super) struct Context<'a> {
    pub disk: Option<&'a Disk>,
    pub config: &'a BlkConfig,
    pub counters: &'a mut Counters,
    /// Where transfers run side by side, and the memory that they touch.
    pub flight: Option<(&'a mut Flight, &'a GuestMemory)>,
}

/// How far a request came.
pub(super) enum Progress {
    /// Answered.
    Served(Served),
    /// On its way; this many bytes.
    Started(u64),
}

/// Does what a chain asks for, and writes its status, or starts it.
pub(super) fn serve(chain: Chain<'_>, context: &mut Context<'_>) -> Progress {
    let Chain {
        head,
        readable,
        mut writable,
    } = chain;
    let Some(data) = before_status(&mut writable) else {
        context.counters.guest_errors += 1;
        return Progress::Served(Served {
            written: 0,
            bytes: 0,
        });
    };
    let room = data.left() as u32;
    let done = match context.disk {
        Some(disk) => perform(head, readable, data, disk, context),
        None => Err(Failure::Guest),
    };
    match done {
        Ok(Step::Started(bytes)) => Progress::Started(bytes),
        Ok(Step::Done(bytes)) => Progress::Served(answer(writable, room, Ok(bytes), context)),
        Err(failure) => Progress::Served(answer(writable, room, Err(failure), context)),
    }
}

/// Answers a request whose transfer is done. `chain` is what it has become meanwhile.
pub(super) fn finish(
    chain: Option<Chain<'_>>,
    pending: &Pending,
    result: &std::io::Result<usize>,
    context: &mut Context<'_>,
) -> u32 {
    let Some(mut chain) = chain else {
        context.counters.guest_errors += 1;
        return 0;
    };
    let Some(data) = before_status(&mut chain.writable) else {
        context.counters.guest_errors += 1;
        return 0;
    };
    let room = data.left() as u32;
    let whole = matches!(result, Ok(moved) if *moved as u64 == pending.bytes);
    let same_disk = |disk: &&Disk| Arc::ptr_eq(disk.file(), &pending.file);
    let done = if whole {
        Ok(pending.count(context.counters))
    } else if let Some(disk) = context.disk.filter(same_disk) {
        // A part, or an error: done again in one piece, which then tells what is wrong.
        context.flight = None;
        match perform(chain.head, chain.readable, data, disk, context) {
            Ok(Step::Done(bytes) | Step::Started(bytes)) => Ok(bytes),
            Err(failure) => Err(failure),
        }
    } else {
        Err(Failure::Guest)
    };
    answer(chain.writable, room, done, context).written
}

/// The status is the last byte that the device may write; without it there is no answer.
fn before_status<'m>(writable: &mut Writable<'m>) -> Option<Writable<'m>> {
    let bytes = writable.left().checked_sub(1)?;
    writable.split_front(bytes).ok()
}

fn answer(
    mut status_byte: Writable<'_>,
    room: u32,
    done: Result<u64, Failure>,
    context: &mut Context<'_>,
) -> Served {
    let counters = &mut *context.counters;
    let (status, bytes) = match done {
        Ok(bytes) => (VIRTIO_BLK_S_OK, bytes),
        Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(Failure::Guest) => {
            counters.guest_errors += 1;
            (VIRTIO_BLK_S_IOERR, 0)
        }
        Err(Failure::Disk(error)) => {
            counters.disk_errors += 1;
            // Once in a while is enough: a dying disk fails every request.
            if counters.disk_errors.is_power_of_two() {
                tracing::warn!(%error, errors = counters.disk_errors, "blk: the disk fails");
            }
            (VIRTIO_BLK_S_IOERR, 0)
        }
    };
    let answered = status_byte.write(&[status as u8]).is_ok();
    Served {
        // The status is at the end, and "written" counts from the beginning.
        written: if answered { room + 1 } else { 0 },
        bytes,
    }
}

fn perform(
    head: u16,
    mut request: Readable<'_>,
    room: Writable<'_>,
    disk: &Disk,
    context: &mut Context<'_>,
) -> Result<Step, Failure> {
    let Context {
        config,
        counters,
        flight,
        ..
    } = context;
    let mut start = |transfer: Transfer<'_>, kind, offset, bytes| -> Option<Step> {
        let (flight, memory) = flight.as_mut()?;
        let pending = Pending {
            kind,
            bytes,
            file: Arc::clone(disk.file()),
        };
        flight
            .start(head, pending, memory, transfer, offset)
            .then_some(Step::Started(bytes))
    };
    let kind = u32::from_le_bytes(take(&mut request)?);
    let _reserved: [u8; 4] = take(&mut request)?;
    let sector = u64::from_le_bytes(take(&mut request)?);
    let writes = matches!(
        kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    );
    if writes && config.read_only {
        return Err(Failure::Guest);
    }
    match kind {
        VIRTIO_BLK_T_IN => {
            let bytes = room.left() as u64;
            let offset = disk.offset(sector, bytes).ok_or(Failure::Guest)?;
            if let Some(started) = start(Transfer::Read(room.slices()), Kind::Read, offset, bytes) {
                return Ok(started);
            }
            disk.read(offset, &room)?;
            Kind::Read.count(bytes, counters);
            Ok(Step::Done(bytes))
        }
        VIRTIO_BLK_T_OUT => {
            let bytes = request.left() as u64;
            let offset = disk.offset(sector, bytes).ok_or(Failure::Guest)?;
            let transfer = Transfer::Write(request.slices());
            if let Some(started) = start(transfer, Kind::Write, offset, bytes) {
                return Ok(started);
            }
            disk.write(offset, &request)?;
            Kind::Write.count(bytes, counters);
            Ok(Step::Done(bytes))
        }
        VIRTIO_BLK_T_FLUSH => {
            // A read-only disk has nothing to flush, and its file system might refuse.
            if !config.read_only {
                if let Some(started) = start(Transfer::Sync, Kind::Flush, 0, 0) {
                    return Ok(started);
                }
                disk.flush()?;
            }
            Kind::Flush.count(0, counters);
            Ok(Step::Done(0))
        }
        VIRTIO_BLK_T_GET_ID => identify(room, &config.serial),
        VIRTIO_BLK_T_DISCARD => {
            let range = Range::read(&mut request, disk, u64::from(MAX_DISCARD) * SECTOR)?;
            if range.flags != 0 {
                return Err(Failure::Unsupported);
            }
            disk.discard(range.offset, range.bytes)
                .map_err(unsupported)?;
            counters.discards += 1;
            Ok(Step::Done(0))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let range = Range::read(&mut request, disk, MAX_ZEROES)?;
            if range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Err(Failure::Unsupported);
            }
            disk.zero(range.offset, range.bytes, range.flags != 0)?;
            counters.zeroes += 1;
            Ok(Step::Done(range.bytes))
        }
        _ => Err(Failure::Unsupported),
    }
}

fn identify(mut room: Writable<'_>, serial: &str) -> Result<Step, Failure> {
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    for (byte, value) in id.iter_mut().zip(serial.as_bytes()) {
        *byte = *value;
    }
    room.write(&id)?;
    Ok(Step::Done(0))
}

/// `struct virtio_blk_discard_write_zeroes`, one of which a request may have.
struct Range {
    offset: u64,
    bytes: u64,
    flags: u32,
}

impl Range {
    fn read(request: &mut Readable<'_>, disk: &Disk, most: u64) -> Result<Self, Failure> {
        let sector = u64::from_le_bytes(take(request)?);
        let bytes = u64::from(u32::from_le_bytes(take(request)?)) * SECTOR;
        let flags = u32::from_le_bytes(take(request)?);
        let offset = disk.offset(sector, bytes).ok_or(Failure::Guest)?;
        if request.left() > 0 || bytes == 0 || bytes > most {
            return Err(Failure::Guest);
        }
        Ok(Self {
            offset,
            bytes,
            flags,
        })
    }
}

fn take<const N: usize>(request: &mut Readable<'_>) -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    request.read(&mut bytes)?;
    Ok(bytes)
}

/// A file system that cannot punch holes is no failing disk.
fn unsupported(error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::Unsupported => Failure::Unsupported,
        _ => Failure::Disk(error),
    }
}
