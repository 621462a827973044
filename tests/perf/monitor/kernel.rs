//! Kernels of a few instructions, as ELF files.

use std::{fs::File, io::Write};

use anyhow::Result;

/// Where they are loaded and entered.
const LOAD: u64 = 16 << 20;

/// Writes lines to the serial port, without end.
pub fn speaking() -> Result<File> {
    elf(&[PORT, &SPEAK].concat())
}

/// Writes into every page from 32 MiB on first.
pub fn touching(mib: u64) -> Result<File> {
    let end = u32::try_from(mib << 20)?.to_le_bytes();
    // mov edi, 32 MiB; mov esi, end
    let range = [&[0xbf, 0, 0, 0, 2, 0xbe][..], &end].concat();
    // mov [rdi], rdi; add rdi, 4096; cmp rdi, rsi; jb back
    let touch = [
        0x48, 0x89, 0x3f, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0x48, 0x39, 0xf7, 0x72, 0xf1,
    ];
    elf(&[PORT, &range, &touch, &SPEAK].concat())
}

/// mov dx, 0x3f8
const PORT: &[u8] = &[0x66, 0xba, 0xf8, 3];
/// mov al, 'r'; out dx, al; mov al, 10; out dx, al; jmp back
const SPEAK: [u8; 8] = [0xb0, b'r', 0xee, 0xb0, 10, 0xee, 0xeb, 0xf8];

fn elf(code: &[u8]) -> Result<File> {
    let mut bytes = vec![0; 120];
    let length = code.len() as u64;
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"\x7fELF\x02\x01");
    // One segment, behind the headers.
    put(24, &LOAD.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(72, &120u64.to_le_bytes());
    put(88, &LOAD.to_le_bytes());
    put(96, &length.to_le_bytes());
    put(104, &length.to_le_bytes());
    bytes.extend(code);
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    Ok(file)
}
