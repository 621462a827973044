//! The network card: frames of a kind that is for experiments (IEEE 802, 0x88b5), to everybody.

use std::{os::fd::AsRawFd as _, path::Path};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};

use super::{Device, SelfTestError, expect, pattern, system};

const KIND: [u8; 2] = [0x88, 0xb5];
const FRAMES: usize = 32;

pub(super) fn frames(device: &Device, scale: usize) -> Result<String, SelfTestError> {
    let name = device.child("net")?;
    let failed = |act| {
        let name = name.clone();
        move |error: nix::Error| system(act, Path::new(&name))(error.into())
    };
    let number: u32 = device
        .attribute(&format!("net/{name}/ifindex"))?
        .parse()
        .unwrap_or(0);
    crate::boot::bring_up(number).map_err(system("bring up", &name))?;
    let mut addresses = getifaddrs().map_err(failed("list"))?;
    let link = addresses
        .find(|a| a.interface_name == name && a.address.is_some_and(|a| a.as_link_addr().is_some()))
        .and_then(|a| a.address?.as_link_addr().copied())
        .ok_or_else(|| SelfTestError::Wrong(format!("{name} has no address")))?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )
    .map_err(failed("open"))?;
    bind(socket.as_raw_fd(), &link).map_err(failed("bind to"))?;

    let sent = || -> Result<u64, SelfTestError> {
        let count = device.attribute(&format!("net/{name}/statistics/tx_packets"))?;
        Ok(count.parse().unwrap_or(0))
    };
    let before = sent()?;
    let wanted = FRAMES * scale;
    let mut back = 0;
    for n in 0..wanted {
        let mut frame = vec![0xff; 6];
        frame.extend(link.addr().unwrap_or_default());
        frame.extend(KIND);
        let mut body = vec![0; 46 + n * 37 % 1400];
        pattern(n, &mut body);
        frame.extend(&body);
        while let Err(error) = send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
            // The queue is full: the device has its time.
            if !matches!(error, nix::Error::ENOBUFS | nix::Error::EAGAIN) {
                return Err(failed("send to")(error));
            }
            std::thread::yield_now();
        }
        // A host that sends them back sends them whole. (Our own are seen here as well.)
        let mut received = vec![0; 2048];
        while let Ok(length) = recv(socket.as_raw_fd(), &mut received, MsgFlags::empty()) {
            let frame = received.get(..length).unwrap_or_default();
            back += usize::from(frame.get(12..14) == Some(&KIND[..]));
        }
    }
    let sent = sent()?.saturating_sub(before);
    expect(sent >= wanted as u64, || {
        format!("{sent} frames of {wanted} were sent")
    })?;
    Ok(format!("{sent} frames sent, {back} seen"))
}
