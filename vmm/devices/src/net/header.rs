//! `struct virtio_net_hdr` (virtio 1.2, 5.1.6), which precedes every packet on both sides: pure.
//!
//! The host's kernel believes much of it when it takes a guest's packet apart, so that it gets only
//! what was negotiated and makes sense.

use super::device::{CSUM, HOST_TSO4, HOST_TSO6};

/// Its length with `VERSION_1`.
pub const HEADER: usize = 12;
/// An Ethernet header: less is no packet.
const ETHERNET: usize = 14;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// A header that a driver must not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Shorter than the headers.
    Runt,
    /// The checksum's place is outside of the packet, or was not negotiated.
    Checksum,
    /// A segmentation that was not negotiated, or cannot be.
    Segmentation,
}

/// Checks what precedes a guest's packet, and leaves in it only what the host is to see.
pub fn clean(packet: &mut [u8], features: u64) -> Result<(), HeaderFault> {
    let Some((header, frame)) = packet.split_first_chunk_mut::<HEADER>() else {
        return Err(HeaderFault::Runt);
    };
    let frame = frame.len();
    if frame < ETHERNET {
        return Err(HeaderFault::Runt);
    }
    let [flags, gso, hdr_len @ .., _, _] = header;
    let [a, b, c, d, e, f, g, h] = *hdr_len;
    let hdr_len = usize::from(u16::from_le_bytes([a, b]));
    let gso_size = u16::from_le_bytes([c, d]);
    let csum_end =
        usize::from(u16::from_le_bytes([e, f])) + usize::from(u16::from_le_bytes([g, h]));

    *flags &= NEEDS_CSUM;
    let checksum = *flags != 0;
    if checksum && (features & CSUM == 0 || csum_end + 2 > frame) {
        return Err(HeaderFault::Checksum);
    }
    let negotiated = match *gso {
        GSO_NONE => return finish(header, gso_size == 0 && hdr_len <= frame),
        GSO_TCPV4 => HOST_TSO4,
        GSO_TCPV6 => HOST_TSO6,
        _ => 0,
    };
    let possible = checksum && gso_size > 0 && (1..=frame).contains(&hdr_len);
    if features & negotiated == 0 || !possible {
        return Err(HeaderFault::Segmentation);
    }
    finish(header, true)
}

/// `num_buffers` says nothing in this direction; without segmentation, lengths say nothing either.
fn finish(header: &mut [u8; HEADER], lengths: bool) -> Result<(), HeaderFault> {
    let [_, _, a, b, c, d, .., e, f] = header;
    if !lengths {
        (*a, *b, *c, *d) = (0, 0, 0, 0);
    }
    (*e, *f) = (0, 0);
    Ok(())
}

/// Says in how many buffers a packet lies.
pub fn set_buffers(packet: &mut [u8], buffers: u16) {
    if let Some((header, _)) = packet.split_first_chunk_mut::<HEADER>() {
        let [.., a, b] = header;
        [*a, *b] = buffers.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ALL: u64 = CSUM | HOST_TSO4 | HOST_TSO6;

    /// flags, gso type, header length, gso size, checksum start and offset; 100 bytes of frame.
    fn packet(fields: (u8, u8, u16, u16, u16, u16)) -> Vec<u8> {
        let (flags, gso, hdr_len, gso_size, start, offset) = fields;
        let mut packet = vec![flags, gso];
        for field in [hdr_len, gso_size, start, offset, 0xffff] {
            packet.extend_from_slice(&field.to_le_bytes());
        }
        packet.resize(HEADER + 100, 0xaa);
        packet
    }

    #[rstest]
    #[case::plain((0, 0, 0, 0, 0, 0), 0, Ok(()))]
    #[case::checksum((1, 0, 0, 0, 34, 16), ALL, Ok(()))]
    #[case::checksum_at_the_end((1, 0, 0, 0, 90, 8), ALL, Ok(()))]
    #[case::checksum_beyond((1, 0, 0, 0, 90, 9), ALL, Err(HeaderFault::Checksum))]
    #[case::checksum_far_beyond((1, 0, 0, 0, 65535, 65535), ALL, Err(HeaderFault::Checksum))]
    #[case::checksum_not_negotiated((1, 0, 0, 0, 34, 16), 0, Err(HeaderFault::Checksum))]
    #[case::tcp4((1, 1, 54, 1460, 34, 16), ALL, Ok(()))]
    #[case::tcp6((1, 4, 74, 1440, 54, 16), ALL, Ok(()))]
    #[case::tcp6_not_negotiated((1, 4, 74, 1440, 54, 16), CSUM | HOST_TSO4, Err(HeaderFault::Segmentation))]
    #[case::without_checksum((0, 1, 54, 1460, 34, 16), ALL, Err(HeaderFault::Segmentation))]
    #[case::without_size((1, 1, 54, 0, 34, 16), ALL, Err(HeaderFault::Segmentation))]
    #[case::headers_longer_than_the_frame((1, 1, 101, 1460, 34, 16), ALL, Err(HeaderFault::Segmentation))]
    #[case::udp((1, 3, 54, 1460, 34, 16), ALL, Err(HeaderFault::Segmentation))]
    #[case::ecn((1, 0x81, 54, 1460, 34, 16), ALL, Err(HeaderFault::Segmentation))]
    fn only_what_was_negotiated_and_makes_sense_passes(
        #[case] fields: (u8, u8, u16, u16, u16, u16),
        #[case] features: u64,
        #[case] answer: Result<(), HeaderFault>,
    ) {
        assert_eq!(clean(&mut packet(fields), features), answer);
    }

    #[test]
    fn what_says_nothing_is_zero_afterwards() {
        let mut bytes = packet((0xfe, 0, 0xffff, 7, 0, 0));
        clean(&mut bytes, ALL).unwrap();
        assert_eq!(bytes[..HEADER], [0; HEADER]);
        assert_eq!(bytes[HEADER..], [0xaa; 100]);
    }

    #[test]
    fn runts_are_refused() {
        for bytes in 0..HEADER + ETHERNET {
            assert_eq!(clean(&mut vec![0; bytes], ALL), Err(HeaderFault::Runt));
        }
    }
}
