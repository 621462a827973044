//! The files that a virtual machine is made of are looked at before it starts: a missing or truncated
//! one would otherwise show as a guest that never speaks.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Why a file cannot be what it should be. Every message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    /// It cannot be opened or read.
    #[error("{what} {}: {source}; {REMEDY}", path.display())]
    Open {
        /// "guest kernel", ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{what} {} is not {expected}; {REMEDY}", path.display())]
    Wrong {
        /// "guest kernel", ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// A program cannot be run.
    #[error("{what} {}: {source}; {remedy}", path.display())]
    Program {
        /// "QEMU", ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// It ends too early.
    #[error("{what} {} is truncated: it has {len} of {needed} bytes; {REMEDY}", path.display())]
    Truncated {
        /// "guest kernel", ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// What its header promises.
        needed: u64,
    },
}

/// What to do about a file of ours.
pub(crate) const REMEDY: &str = "`isopod check` tells more, `make install` installs it";

const KERNEL: &str = "guest kernel";
const IMAGE: &str = "guest image";
/// gABI, ELF-64 Object File Format: e_ident with class 64 bit, little endian.
const ELF64_LE: [u8; 6] = *b"\x7fELF\x02\x01";
const ELF_HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// e_machine of x86-64.
const X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// EROFS_SUPER_OFFSET and EROFS_SUPER_MAGIC_V1 (kernel, fs/erofs/erofs_fs.h).
const EROFS_SUPER_OFFSET: u64 = 1024;
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
const EROFS_SUPER_LEN: usize = 128;

/// The guest kernel, open: an ELF executable for x86-64 that is as long as its headers say.
pub(crate) fn open_kernel(path: &Path) -> Result<File, ArtifactError> {
    let (file, len) = open(KERNEL, path)?;
    let wrong = || ArtifactError::Wrong {
        what: KERNEL,
        path: path.to_owned(),
        expected: "an uncompressed ELF vmlinux for x86-64",
    };
    let header: [u8; ELF_HEADER_LEN] = read(KERNEL, path, &file, 0, len)?;
    if !header.starts_with(&ELF64_LE) || u16_at(&header, 18) != Some(X86_64) {
        return Err(wrong());
    }
    let table = u64_at(&header, 32).ok_or_else(wrong)?;
    let size = u16_at(&header, 54).ok_or_else(wrong)?;
    let count = u16_at(&header, 56).ok_or_else(wrong)?;
    if usize::from(size) != PROGRAM_HEADER_LEN || !(1..=64).contains(&count) {
        return Err(wrong());
    }
    let mut needed = 0;
    for index in 0..u64::from(count) {
        let offset = table
            .checked_add(index * PROGRAM_HEADER_LEN as u64)
            .ok_or_else(wrong)?;
        let entry: [u8; PROGRAM_HEADER_LEN] = read(KERNEL, path, &file, offset, len)?;
        if u32_at(&entry, 0) == Some(PT_LOAD) {
            let end = u64_at(&entry, 8).zip(u64_at(&entry, 32));
            let end = end.and_then(|(offset, length)| offset.checked_add(length));
            needed = needed.max(end.ok_or_else(wrong)?);
        }
    }
    if needed == 0 {
        return Err(wrong());
    }
    whole(KERNEL, path, len, needed)?;
    Ok(file)
}

/// The guest image, open: EROFS, as long as its superblock says.
pub(crate) fn open_image(path: &Path) -> Result<File, ArtifactError> {
    let (file, len) = open(IMAGE, path)?;
    let wrong = || ArtifactError::Wrong {
        what: IMAGE,
        path: path.to_owned(),
        expected: "an EROFS image",
    };
    let superblock: [u8; EROFS_SUPER_LEN] = read(IMAGE, path, &file, EROFS_SUPER_OFFSET, len)?;
    if u32_at(&superblock, 0) != Some(EROFS_MAGIC) {
        return Err(wrong());
    }
    let block_bits = superblock
        .get(12)
        .copied()
        .filter(|bits| (9..=16).contains(bits));
    let blocks = u32_at(&superblock, 36).map(u64::from);
    let needed = blocks.zip(block_bits).map(|(blocks, bits)| blocks << bits);
    let needed = needed.filter(|needed| *needed > 0).ok_or_else(wrong)?;
    whole(IMAGE, path, len, needed)?;
    Ok(file)
}

/// A program that must be there; `remedy` is what to do when it is not.
pub(crate) fn check_program(
    what: &'static str,
    path: &Path,
    remedy: &'static str,
) -> Result<(), ArtifactError> {
    let failed = |source| ArtifactError::Program {
        what,
        path: path.to_owned(),
        source,
        remedy,
    };
    let access = rustix::fs::Access::EXEC_OK;
    rustix::fs::access(path, access).map_err(|errno| failed(errno.into()))?;
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(failed(io::Error::other("not a file"))),
        Err(source) => Err(failed(source)),
    }
}

fn open(what: &'static str, path: &Path) -> Result<(File, u64), ArtifactError> {
    let failed = |source| ArtifactError::Open {
        what,
        path: path.to_owned(),
        source,
    };
    // A named pipe in its place must not stop us.
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
    let file = File::from(file.map_err(|errno| failed(errno.into()))?);
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(ArtifactError::Wrong {
            what,
            path: path.to_owned(),
            expected: "a regular file",
        });
    }
    Ok((file, found.len()))
}

fn read<const N: usize>(
    what: &'static str,
    path: &Path,
    file: &File,
    offset: u64,
    len: u64,
) -> Result<[u8; N], ArtifactError> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).map_err(|source| {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            ArtifactError::Truncated {
                what,
                path: path.to_owned(),
                len,
                needed: offset.saturating_add(N as u64),
            }
        } else {
            ArtifactError::Open {
                what,
                path: path.to_owned(),
                source,
            }
        }
    })?;
    Ok(bytes)
}

fn whole(what: &'static str, path: &Path, len: u64, needed: u64) -> Result<(), ArtifactError> {
    if len >= needed {
        return Ok(());
    }
    Err(ArtifactError::Truncated {
        what,
        path: path.to_owned(),
        len,
        needed,
    })
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
#[path = "artifact_tests.rs"]
mod tests;
