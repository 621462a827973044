//! Bounded cursors over the two halves of a chain.

use isopod_memory::GuestSlice;
use smallvec::SmallVec;

/// A driver gave a device fewer bytes than the request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chain has {left} bytes left where {wanted} are needed")]
pub struct ShortChain {
    /// Bytes that the device needs.
    pub wanted: usize,
    /// Bytes that are there.
    pub left: usize,
}

/// Pieces of guest memory in order, consumed from the front.
#[derive(Debug, Default)]
pub(crate) struct Pieces<'m> {
    pieces: SmallVec<[GuestSlice<'m>; 4]>,
    /// Pieces before this one are used up.
    first: usize,
    left: usize,
}

impl<'m> Pieces<'m> {
    pub(crate) fn push(&mut self, piece: GuestSlice<'m>) {
        if !piece.is_empty() {
            self.left = self.left.saturating_add(piece.len());
            self.pieces.push(piece);
        }
    }

    pub(crate) fn left(&self) -> usize {
        self.left
    }

    fn slices(&self) -> &[GuestSlice<'m>] {
        self.pieces.get(self.first..).unwrap_or_default()
    }

    /// Gives the front bytes to `each` piece by piece and moves on; all of them or none.
    fn consume(
        &mut self,
        bytes: usize,
        mut each: impl FnMut(GuestSlice<'m>),
    ) -> Result<(), ShortChain> {
        let short = ShortChain {
            wanted: bytes,
            left: self.left,
        };
        if bytes > self.left {
            return Err(short);
        }
        let mut wanted = bytes;
        while wanted > 0 {
            let piece = self.pieces.get_mut(self.first).ok_or(short)?;
            if piece.len() <= wanted {
                wanted -= piece.len();
                each(*piece);
                self.first += 1;
            } else {
                let (front, rest) = piece.split_at(wanted).map_err(|_| short)?;
                *piece = rest;
                each(front);
                wanted = 0;
            }
        }
        self.left -= bytes;
        Ok(())
    }

    fn split_front(&mut self, bytes: usize) -> Result<Self, ShortChain> {
        let mut front = Self::default();
        self.consume(bytes, |piece| front.push(piece))?;
        Ok(front)
    }
}

/// The part of a chain that the device reads.
#[derive(Debug, Default)]
pub struct Readable<'m>(pub(crate) Pieces<'m>);

impl<'m> Readable<'m> {
    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.0.left()
    }

    /// What is not yet read, for a system call that takes several pieces.
    pub fn slices(&self) -> &[GuestSlice<'m>] {
        self.0.slices()
    }

    /// Fills `bytes` from the front.
    ///
    /// # Errors
    /// When fewer bytes are left; nothing is consumed then.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<(), ShortChain> {
        let wanted = bytes.len();
        let mut rest = bytes;
        self.0.consume(wanted, |piece| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len());
            piece.copy_to(now);
            rest = later;
        })
    }

    /// Passes over the front bytes.
    ///
    /// # Errors
    /// When fewer bytes are left; nothing is consumed then.
    pub fn advance(&mut self, bytes: usize) -> Result<(), ShortChain> {
        self.0.consume(bytes, |_| ())
    }

    /// Takes the front bytes off as a part of their own.
    ///
    /// # Errors
    /// When fewer bytes are left; nothing is consumed then.
    pub fn split_front(&mut self, bytes: usize) -> Result<Self, ShortChain> {
        self.0.split_front(bytes).map(Self)
    }
}

impl<'m> From<GuestSlice<'m>> for Readable<'m> {
    fn from(piece: GuestSlice<'m>) -> Self {
        let mut pieces = Pieces::default();
        pieces.push(piece);
        Self(pieces)
    }
}

/// The part of a chain that the device writes.
#[derive(Debug, Default)]
pub struct Writable<'m>(pub(crate) Pieces<'m>);

impl<'m> Writable<'m> {
    /// Bytes not yet written.
    pub fn left(&self) -> usize {
        self.0.left()
    }

    /// What is not yet written, for a system call that takes several pieces.
    pub fn slices(&self) -> &[GuestSlice<'m>] {
        self.0.slices()
    }

    /// Writes `bytes` at the front.
    ///
    /// # Errors
    /// When there is less room; nothing is written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ShortChain> {
        let mut rest = bytes;
        self.0.consume(bytes.len(), |piece| {
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from(now);
            rest = later;
        })
    }

    /// Passes over the front bytes.
    ///
    /// # Errors
    /// When there is less room; nothing is consumed then.
    pub fn advance(&mut self, bytes: usize) -> Result<(), ShortChain> {
        self.0.consume(bytes, |_| ())
    }

    /// Takes the front bytes off as a part of their own, to be filled later than what follows.
    ///
    /// # Errors
    /// When there is less room; nothing is consumed then.
    pub fn split_front(&mut self, bytes: usize) -> Result<Self, ShortChain> {
        self.0.split_front(bytes).map(Self)
    }
}

impl<'m> From<GuestSlice<'m>> for Writable<'m> {
    fn from(piece: GuestSlice<'m>) -> Self {
        let mut pieces = Pieces::default();
        pieces.push(piece);
        Self(pieces)
    }
}
