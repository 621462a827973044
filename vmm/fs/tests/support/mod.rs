//! FUSE requests as bytes, as a guest's kernel (or something worse) sends them.
#![allow(dead_code, reason = "every test file uses its own part")]

pub mod front_end;
pub mod process;

use std::ffi::CString;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const RELEASE: u32 = 18;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const REMOVEXATTR: u32 = 24;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const CREATE: u32 = 35;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const TMPFILE: u32 = 51;

pub const ROOT: u64 = 1;

/// What answers a request: its bytes in, at most `room` bytes out.
pub trait Guest {
    fn send(&mut self, request: &[u8], room: usize) -> Vec<u8>;

    /// Sends a well-formed request; the body of the answer, or the error number.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.call_as((0, 0), opcode, node, body)
    }

    fn call_as(
        &mut self,
        user: (u32, u32),
        opcode: u32,
        node: u64,
        body: &[u8],
    ) -> Result<Vec<u8>, i32> {
        let request = message(opcode, node, user, body);
        let answer = self.send(&request, 0x10000);
        assert!(
            answer.len() >= 16,
            "opcode {opcode}: an answer of {} bytes",
            answer.len()
        );
        assert_eq!(
            number(&answer, 0, 4) as usize,
            answer.len(),
            "length in the header"
        );
        assert_eq!(
            number(&answer, 8, 8),
            UNIQUE,
            "the answer to another request"
        );
        match i32::from_ne_bytes(answer[4..8].try_into().unwrap()) {
            0 => Ok(answer[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// FUSE_INIT as Linux 6.12 sends it.
    fn init(&mut self) {
        let body = words(&[
            7,
            41,
            0x20000,
            0x7bff_fffb,
            0x1f,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        let answer = self.call(INIT, 0, &body).expect("INIT");
        assert_eq!(number(&answer, 0, 4), 7, "protocol version");
    }

    fn lookup(&mut self, node: u64, name: &[u8]) -> Result<u64, i32> {
        self.call(LOOKUP, node, &name_of(name))
            .map(|answer| number(&answer, 0, 8))
    }

    /// Opens a file and reads its beginning.
    fn read(&mut self, node: u64, bytes: u32) -> Result<Vec<u8>, i32> {
        let handle = number(&self.call(OPEN, node, &words(&[0, 0]))?, 0, 8);
        let body = [
            longs(&[handle, 0]),
            words(&[bytes, 0]),
            longs(&[0]),
            words(&[0, 0]),
        ]
        .concat();
        self.call(READ, node, &body)
    }
}

const UNIQUE: u64 = 0x1234_5678_9abc;

/// A request with its header.
pub fn message(opcode: u32, node: u64, (uid, gid): (u32, u32), body: &[u8]) -> Vec<u8> {
    let length = 40 + body.len() as u32;
    [
        words(&[length, opcode]),
        longs(&[UNIQUE, node]),
        words(&[uid, gid, 1, 0]),
        body.to_vec(),
    ]
    .concat()
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// The bytes of a name with the NUL that ends it.
pub fn name_of(name: &[u8]) -> Vec<u8> {
    CString::new(name)
        .map(CString::into_bytes_with_nul)
        .unwrap_or_else(|_| {
            // A hostile one, with a NUL inside.
            [name, b"\0"].concat()
        })
}

/// An unsigned number of 4 or 8 bytes.
pub fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    match size {
        4 => u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()).into(),
        _ => u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()),
    }
}
