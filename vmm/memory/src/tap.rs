//! What a tap device must be told by ioctl(2): the one thing of it that has no safe interface.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// The guest takes packets whose checksum is not filled in (`TUN_F_CSUM`).
pub const OFFLOAD_CHECKSUM: u32 = libc::TUN_F_CSUM;
/// The guest takes TCP over IPv4 in segments larger than its MTU (`TUN_F_TSO4`).
pub const OFFLOAD_TSO4: u32 = libc::TUN_F_TSO4;
/// The same over IPv6 (`TUN_F_TSO6`).
pub const OFFLOAD_TSO6: u32 = libc::TUN_F_TSO6;

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
            let tap = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun");
            let tap = tap.unwrap();
            let mut request = [0u8; 40];
            request[..4].copy_from_slice(b"tap0");
            let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
            request[16..18].copy_from_slice(&flags.to_ne_bytes());
            let interface = request.as_mut_ptr();
            // SAFETY: the kernel reads and writes a `struct ifreq` of 40 bytes, which is alive.
            let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, interface) };
            assert_eq!(made, 0);
            set_header_length(tap.as_fd(), 12).unwrap();
            set_offload(tap.as_fd(), OFFLOAD_CHECKSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6).unwrap();
            set_offload(tap.as_fd(), 0).unwrap();
            assert!(set_offload(tap.as_fd(), 1 << 31).is_err());
        });
        thread.join().unwrap();
    }
}
