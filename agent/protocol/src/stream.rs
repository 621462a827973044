//! How a stdio connection introduces itself: 16 bytes from the host, then the stream's data.
//!
//! ```text
//! 0        8        16
//! +--------+--------+
//! | MAGIC  | id, LE |
//! +--------+--------+
//! ```
//! Half close means end of file in either direction.

/// First eight bytes of every stdio connection.
pub const MAGIC: [u8; 8] = *b"isopodio";
/// Length of a [`Header`] in bytes.
pub const HEADER_LEN: usize = 16;

/// The introduction of one stdio connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The stream id that a `Create` or `Exec` request names; never 0.
    pub id: u64,
}

impl Header {
    /// The header as sent.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// The header in `bytes`, unless the magic is wrong or the id is 0.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let (magic, id) = bytes.split_first_chunk::<8>()?;
        let id = u64::from_le_bytes(id.try_into().ok()?);
        (*magic == MAGIC && id != 0).then_some(Self { id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_the_wire() {
        let header = Header {
            id: 0x0102_0304_0506_0708,
        };
        assert_eq!(Header::decode(&header.encode()), Some(header));
    }

    #[test]
    fn wrong_magic_and_zero_id_are_refused() {
        assert_eq!(Header::decode(&[0; HEADER_LEN]), None);
        assert_eq!(Header::decode(&Header { id: 0 }.encode()), None);
    }
}
