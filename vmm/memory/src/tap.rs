//! What a tap device must be told by ioctl(2): the one thing of it that has no safe interface.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// The guest takes packets whose checksum is not filled in (`TUN_F_CSUM`).
pub const OFFLOAD_CHECKSUM: u32 = libc::TUN_F_CSUM;
/// The guest takes TCP over IPv4 in segments larger than its MTU (`TUN_F_TSO4`).
pub const OFFLOAD_TSO4: u32 = libc::TUN_F_TSO4;
/// The same over IPv6 (`TUN_F_TSO6`).
pub const OFFLOAD_TSO6: u32 = libc::TUN_F_TSO6;

/// Opens one queue of the tap device `name` of this network namespace, as a network card wants it
/// (`IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`); makes the device if there is none.
///
/// # Errors
/// A name of more than 15 bytes or with a NUL, /dev/net/tun cannot be opened, or the kernel refuses.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    // struct ifreq: a name that a NUL ends, then flags.
    let mut request = [0; size_of::<libc::ifreq>()];
    let fits = name.len() < libc::IFNAMSIZ && !name.is_empty() && !name.contains('\0');
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    let [low, high] = flags.to_ne_bytes();
    let fields = name
        .bytes()
        .enumerate()
        .chain([(libc::IFNAMSIZ, low), (libc::IFNAMSIZ + 1, high)]);
    for (at, byte) in fields.filter(|_| fits) {
        if let Some(place) = request.get_mut(at) {
            *place = byte;
        }
    }
    if !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: the kernel reads and writes one `struct ifreq` at the address of a live local of its size.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })?;
    Ok(tap.into())
}

/// Says what the reader of the tap device's packets can take: a mask of the `OFFLOAD_` bits.
///
/// # Errors
/// When the descriptor is no tap device, or the kernel knows one of the bits not.
pub fn set_offload(tap: BorrowedFd<'_>, offload: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value; no memory is passed.
    done(unsafe {
        libc::ioctl(
            tap.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offload),
        )
    })
}

/// Says how long the header before each packet is, in bytes: 12 for virtio 1.
///
/// # Errors
/// When the descriptor is no tap device, or was opened without `IFF_VNET_HDR`.
pub fn set_header_length(tap: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: the kernel reads one `int` at the address, which is that of a live local.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

fn done(answer: libc::c_int) -> io::Result<()> {
    match answer {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, os::fd::AsFd};

    use super::*;

    #[test]
    fn a_descriptor_that_is_no_tap_device_is_refused() {
        let null = OpenOptions::new().read(true).open("/dev/null").unwrap();
        assert!(set_offload(null.as_fd(), OFFLOAD_CHECKSUM).is_err());
        assert!(set_header_length(null.as_fd(), 12).is_err());
    }

    /// In a network namespace of the test's own, so that nothing is left behind.
    #[test]
    fn a_tap_device_takes_both() {
        let thread = std::thread::spawn(|| {
            // SAFETY: only this thread leaves the network namespace; no memory is passed.
            let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(left, 0, "needs root");
            let tap = open("tap0").unwrap();
            for name in ["", "a-name-of-16-byt", "a\0b"] {
                assert!(open(name).is_err(), "{name:?}");
            }
            set_header_length(tap.as_fd(), 12).unwrap();
            set_offload(tap.as_fd(), OFFLOAD_CHECKSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6).unwrap();
            set_offload(tap.as_fd(), 0).unwrap();
            assert!(set_offload(tap.as_fd(), 1 << 31).is_err());
        });
        thread.join().unwrap();
    }
}
