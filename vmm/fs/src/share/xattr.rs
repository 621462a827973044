//! Extended attributes.
//!
//! `user.*`, `security.capability` and the POSIX ACLs are the host's. `trusted.*` would need
//! CAP_SYS_ADMIN on the host, which is far too much: a guest's are kept under a prefix in `user.*`,
//! which the guest cannot name directly, or its users could write what only its root may.

use std::{
    ffi::{CStr, CString},
    io,
};

use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};
use rustix::fs::XattrFlags;

use super::{Share, attributes::descriptor_name, thread};

/// Where the guest's `trusted.` attributes are on the host.
const KEPT: &[u8] = b"user.isopod.";
const TRUSTED: &[u8] = b"trusted.";

/// The longest value and the longest list of names that Linux has (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_BYTES: u32 = 64 << 10;

/// The host's name for the guest's attribute.
fn to_host(name: &CStr) -> io::Result<CString> {
    let bytes = name.to_bytes();
    if bytes.starts_with(KEPT) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let host = if bytes.starts_with(TRUSTED) {
        [KEPT, bytes].concat()
    } else {
        bytes.to_vec()
    };
    CString::new(host).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The guest's list of names from the host's.
fn list_to_guest(names: &[u8]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.len());
    for name in names.split_inclusive(|byte| *byte == 0) {
        list.extend_from_slice(name.strip_prefix(KEPT).unwrap_or(name));
    }
    list
}

impl Share {
    /// Calls with the path of the inode for this thread. (There are no calls that take a descriptor
    /// which only names a file, before Linux 6.13.)
    fn with_path<T>(
        &self,
        node: u64,
        call: impl FnOnce(&CStr) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let fd = self.inodes.fd(&self.inodes.get(node)?)?;
        thread::enter_descriptors(&self.proc)?;
        Ok(call(descriptor_name(&fd).as_c_str())?)
    }

    pub(super) fn set_attribute(
        &self,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let name = to_host(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        self.with_path(node, |path| rustix::fs::setxattr(path, &name, value, flags))
    }

    pub(super) fn attribute(&self, node: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let name = to_host(name)?;
        if size == 0 {
            let bytes = self.with_path(node, |path| rustix::fs::getxattr_query(path, &name))?;
            return Ok(GetxattrReply::Count(count(bytes)));
        }
        let mut value = vec![0; size.min(MAX_BYTES) as usize];
        let bytes = self.with_path(node, |path| {
            rustix::fs::getxattr(path, &name, &mut value[..])
        })?;
        value.truncate(bytes);
        Ok(GetxattrReply::Value(value))
    }

    pub(super) fn attributes(&self, node: u64, size: u32) -> io::Result<ListxattrReply> {
        let mut names = vec![0; MAX_BYTES as usize];
        let bytes = self.with_path(node, |path| rustix::fs::listxattr(path, &mut names[..]))?;
        names.truncate(bytes);
        let names = list_to_guest(&names);
        match size {
            0 => Ok(ListxattrReply::Count(count(names.len()))),
            size if names.len() > size as usize => Err(io::Error::from_raw_os_error(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    pub(super) fn remove_attribute(&self, node: u64, name: &CStr) -> io::Result<()> {
        let name = to_host(name)?;
        self.with_path(node, |path| rustix::fs::removexattr(path, &name))
    }
}

fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_attributes_are_kept_apart_and_come_back() {
        assert_eq!(to_host(c"user.a").unwrap(), c"user.a".to_owned());
        assert_eq!(
            to_host(c"trusted.a").unwrap(),
            c"user.isopod.trusted.a".to_owned()
        );
        let names = b"user.a\0user.isopod.trusted.a\0security.capability\0";
        assert_eq!(
            list_to_guest(names),
            b"user.a\0trusted.a\0security.capability\0"
        );
        assert_eq!(list_to_guest(b""), b"");
    }

    #[test]
    fn the_guest_cannot_name_what_is_kept_for_its_root() {
        let error = to_host(c"user.isopod.trusted.a").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
