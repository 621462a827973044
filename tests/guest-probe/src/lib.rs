//! What the probe and the tests outside agree on: the byte pattern of long streams.
//!
//! Imported by `tests` and by the probe's own program.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

const BLOCK: usize = 64 * 1024;

/// Fills `block` with the pattern that belongs at `offset` (a multiple of 8): every eight bytes depend on
/// their place, so that a lost, repeated or swapped piece of any size shows.
pub fn fill(block: &mut [u8], offset: u64) {
    for (word, place) in block.chunks_mut(8).zip(offset / 8..) {
        let value = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ place;
        for (byte, value) in word.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }
}

/// Writes the first `count` bytes of the pattern.
pub fn emit(out: &mut impl Write, count: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut done = 0_u64;
    while done < count {
        fill(&mut block, done);
        let rest = usize::try_from(count - done).unwrap_or(BLOCK).min(BLOCK);
        out.write_all(block.get(..rest).unwrap_or(&block))?;
        done += rest as u64;
    }
    out.flush()
}

/// Reads to the end; answers how many bytes there were, or where the first wrong one is.
pub fn absorb(input: &mut impl Read) -> io::Result<Result<u64, u64>> {
    let (mut read, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut done = 0_u64;
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match input.read(read.get_mut(filled..).unwrap_or_default())? {
                0 => break,
                count => filled += count,
            }
        }
        fill(&mut expected, done);
        let wrong = read
            .iter()
            .zip(&expected)
            .take(filled)
            .position(|(got, wanted)| got != wanted);
        if let Some(place) = wrong {
            return Ok(Err(done + place as u64));
        }
        done += filled as u64;
        if filled < BLOCK {
            return Ok(Ok(done));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_emitted_is_absorbed() {
        for count in [0, 1, 8, 65535, 65536, 65537, 300_001] {
            let mut bytes = Vec::new();
            emit(&mut bytes, count).unwrap();
            assert_eq!(absorb(&mut bytes.as_slice()).unwrap(), Ok(count));
        }
    }

    #[test]
    fn a_swap_a_loss_and_a_repetition_show() {
        let mut whole = Vec::new();
        emit(&mut whole, 400_000).unwrap();
        let mut swapped = whole.clone();
        swapped.swap(100_000, 300_000);
        assert_eq!(absorb(&mut swapped.as_slice()).unwrap(), Err(100_000));
        let lost = [&whole[..65_536], &whole[131_072..]].concat();
        assert_eq!(absorb(&mut lost.as_slice()).unwrap(), Err(65_536));
        let repeated = [&whole[..65_536], &whole].concat();
        assert!(matches!(
            absorb(&mut repeated.as_slice()).unwrap(),
            Err(65_536..65_544)
        ));
    }
}
