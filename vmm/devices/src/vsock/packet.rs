//! The packet header on the wire (virtio 1.2, 5.10.6).

use isopod_virtio::{Readable, ShortChain};

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// Payload of one packet at most; what Linux's driver sends at most, and what it accepts.
pub const MAX_PAYLOAD: u32 = 64 * 1024;

bitflags::bitflags! {
    /// The flags of a SHUTDOWN: what its sender will not do any more. They only ever accumulate.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ShutdownFlags: u32 {
        /// It will not receive.
        const RECEIVE = 1;
        /// It will not send.
        const SEND = 2;
    }
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Connect.
    Request = 1,
    /// The connection is accepted.
    Response = 2,
    /// There is no such connection (any more).
    Rst = 3,
    /// The sender will not receive, not send, or neither.
    Shutdown = 4,
    /// Payload.
    Rw = 5,
    /// Nothing but the sender's credit.
    CreditUpdate = 6,
    /// Please send a credit update.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number.
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// `struct virtio_vsock_hdr`, with the numbers as the sender wrote them: nothing is judged yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// See [`Op`].
    pub op: u16,
    /// Depends on `op`.
    pub flags: u32,
    /// Bytes that the sender can buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes that have left the sender's buffer so far (modulo 2^32).
    pub fwd_cnt: u32,
}

impl Header {
    /// Takes a header off the front of a packet.
    ///
    /// # Errors
    /// When the packet is shorter than a header.
    pub fn read(packet: &mut Readable<'_>) -> Result<Self, ShortChain> {
        let mut bytes = [0; HEADER_LEN];
        packet.read(&mut bytes)?;
        Ok(Self::from_wire(bytes))
    }

    /// Decodes a header.
    pub fn from_wire(bytes: [u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(&bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// Encodes a header.
    pub fn to_wire(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The answer that says that there is no such connection.
    pub fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Rst as u16,
            ..Self::default()
        }
    }
}

/// The rest of an encoded header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field; the fields' sizes add up to [`HEADER_LEN`], so there always is one.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_the_specification_s() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let bytes: Vec<u8> = (1..=44).collect();
        assert_eq!(header.to_wire().as_slice(), bytes);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_and_come_back(bytes in prop::array::uniform::<_, HEADER_LEN>(any::<u8>())) {
            prop_assert_eq!(Header::from_wire(bytes).to_wire(), bytes);
        }

        #[test]
        fn operations_are_the_numbers_1_to_7(number: u16) {
            match Op::from_wire(number) {
                Some(op) => prop_assert_eq!(op as u16, number),
                None => prop_assert!(number == 0 || number > 7),
            }
        }
    }
}
