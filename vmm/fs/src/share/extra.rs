//! Requests that fuse-backend-rs does not know: copy_file_range, syncfs, O_TMPFILE, statx; and open and
//! create, whose answers say more here than it can express. Bodies are in the host's byte order, as
//! laid out in the kernel's include/uapi/linux/fuse.h.

use std::{
    ffi::CStr,
    io::{self, Read},
};

use fuse_backend_rs::{
    abi::fuse_abi::{
        CreateIn, EntryOut, FOPEN_IN_KILL_SUIDGID, GETATTR_FH, InHeader, OpenOut, WriteOut,
    },
    api::filesystem::Context,
};
use isopod_memory::ByteValued;
use rustix::fs::{Statx, StatxFlags, StatxTimestamp};

use super::{Share, VALIDITY, file::OpenedFile};

const OPEN: u32 = 14;
const CREATE: u32 = 35;
const COPY_FILE_RANGE: u32 = 47;
const SYNCFS: u32 = 50;
const TMPFILE: u32 = 51;
const STATX: u32 = 52;

/// Is this one of the requests that are answered here?
#[must_use]
pub fn knows(opcode: u32) -> bool {
    matches!(
        opcode,
        OPEN | CREATE | COPY_FILE_RANGE | SYNCFS | TMPFILE | STATX
    )
}

/// Answers a request that [`knows`] names; returns the body of the answer.
///
/// # Errors
/// What the guest is told.
pub fn answer(share: &Share, header: &InHeader, body: &mut impl Read) -> io::Result<Vec<u8>> {
    match header.opcode {
        OPEN => open(share, header, body),
        CREATE => create(share, header, body),
        COPY_FILE_RANGE => copy_file_range(share, header, body),
        SYNCFS => share.sync_file_system(header.nodeid).map(|()| Vec::new()),
        TMPFILE => tmpfile(share, header, body),
        STATX => statx(share, header, body),
        _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
    }
}

fn u32_from(body: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    body.read_exact(&mut bytes)
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(u32::from_ne_bytes(bytes))
}

fn u64_from(body: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    body.read_exact(&mut bytes)
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// `struct fuse_copy_file_range_in`, answered by `struct fuse_write_out`.
fn copy_file_range(share: &Share, header: &InHeader, body: &mut impl Read) -> io::Result<Vec<u8>> {
    let (handle_in, offset_in) = (u64_from(body)?, u64_from(body)?);
    let (node_out, handle_out, offset_out) = (u64_from(body)?, u64_from(body)?, u64_from(body)?);
    let (length, flags) = (u64_from(body)?, u64_from(body)?);
    if flags != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let from = (header.nodeid, handle_in, offset_in);
    let size = share.copy(from, (node_out, handle_out, offset_out), length)?;
    Ok(WriteOut { size, padding: 0 }.as_slice().to_vec())
}

/// `struct fuse_open_in`, answered by `struct fuse_open_out`.
fn open(share: &Share, header: &InHeader, body: &mut impl Read) -> io::Result<Vec<u8>> {
    let (flags, fuse_flags) = (u32_from(body)?, u32_from(body)?);
    let kill = fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
    let opened = share.open_file(header.nodeid, flags, kill)?;
    Ok(open_out(&opened).as_slice().to_vec())
}

/// `struct fuse_create_in` and a name, answered by `struct fuse_entry_out` and `struct fuse_open_out`.
fn create(share: &Share, header: &InHeader, body: &mut impl Read) -> io::Result<Vec<u8>> {
    let request = create_in(body)?;
    let mut name = Vec::new();
    body.take(NAME_SIZE).read_to_end(&mut name)?;
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| {
        let too_long = name.len() as u64 == NAME_SIZE;
        io::Error::from_raw_os_error(if too_long {
            libc::ENAMETOOLONG
        } else {
            libc::EINVAL
        })
    })?;
    let caller = Context::from(header);
    let (entry, opened) = share.make_file(&caller, header.nodeid, name, request)?;
    Ok([
        EntryOut::from(entry).as_slice(),
        open_out(&opened).as_slice(),
    ]
    .concat())
}

/// NAME_MAX, one byte to know a name that is too long by, and the NUL.
const NAME_SIZE: u64 = 257;

/// `struct fuse_create_in` and a name without meaning, answered as [`create`] is.
fn tmpfile(share: &Share, header: &InHeader, body: &mut impl Read) -> io::Result<Vec<u8>> {
    let request = create_in(body)?;
    let caller = Context::from(header);
    let (entry, opened) = share.make_nameless(&caller, header.nodeid, request)?;
    Ok([
        EntryOut::from(entry).as_slice(),
        open_out(&opened).as_slice(),
    ]
    .concat())
}

fn create_in(body: &mut impl Read) -> io::Result<CreateIn> {
    Ok(CreateIn {
        flags: u32_from(body)?,
        mode: u32_from(body)?,
        umask: u32_from(body)?,
        fuse_flags: u32_from(body)?,
    })
}

fn open_out(opened: &OpenedFile) -> OpenOut {
    OpenOut {
        fh: opened.handle,
        open_flags: opened.open_flags,
        ..OpenOut::default()
    }
}

/// `struct fuse_statx_in`, answered by `struct fuse_statx_out`.
fn statx(share: &Share, header: &InHeader, body: &mut impl Read) -> io::Result<Vec<u8>> {
    let (flags, _reserved) = (u32_from(body)?, u32_from(body)?);
    let handle = u64_from(body)?;
    let stat = share.stat(header.nodeid, (flags & GETATTR_FH != 0).then_some(handle))?;
    let mut answer = Vec::with_capacity(288);
    answer.extend(VALIDITY.as_secs().to_ne_bytes());
    answer.extend(VALIDITY.subsec_nanos().to_ne_bytes());
    answer.extend([0; 4 + 2 * 8]);
    put_statx(&mut answer, &stat);
    Ok(answer)
}

/// `struct fuse_statx`.
fn put_statx(answer: &mut Vec<u8>, stat: &Statx) {
    let known = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    answer.extend((stat.stx_mask & known.bits()).to_ne_bytes());
    answer.extend(stat.stx_blksize.to_ne_bytes());
    answer.extend(stat.stx_attributes.bits().to_ne_bytes());
    for word in [stat.stx_nlink, stat.stx_uid, stat.stx_gid] {
        answer.extend(word.to_ne_bytes());
    }
    answer.extend(stat.stx_mode.to_ne_bytes());
    answer.extend([0; 2]);
    for long in [stat.stx_ino, stat.stx_size, stat.stx_blocks] {
        answer.extend(long.to_ne_bytes());
    }
    answer.extend(stat.stx_attributes_mask.bits().to_ne_bytes());
    for time in [
        stat.stx_atime,
        stat.stx_btime,
        stat.stx_ctime,
        stat.stx_mtime,
    ] {
        let StatxTimestamp {
            tv_sec, tv_nsec, ..
        } = time;
        answer.extend(tv_sec.to_ne_bytes());
        answer.extend(tv_nsec.to_ne_bytes());
        answer.extend([0; 4]);
    }
    let devices = [
        stat.stx_rdev_major,
        stat.stx_rdev_minor,
        stat.stx_dev_major,
        stat.stx_dev_minor,
    ];
    for word in devices {
        answer.extend(word.to_ne_bytes());
    }
    answer.extend([0; 14 * 8]);
}
