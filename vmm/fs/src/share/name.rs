//! What may name an entry of a directory.

use std::{ffi::CStr, io};

/// Refuses whatever is not the name of exactly one entry: empty, `.`, `..`, and anything with a slash.
///
/// # Errors
/// EINVAL; ENAMETOOLONG beyond what any Linux file system takes.
pub fn component(name: &CStr) -> io::Result<&CStr> {
    let bytes = name.to_bytes();
    if bytes.len() > 255 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_pass() {
        for good in [c"a", c"...", c"..a", c"a b", c"\xff\xfe", c"-", c"\n"] {
            assert!(component(good).is_ok(), "{good:?}");
        }
        for bad in [
            c"", c".", c"..", c"/", c"/etc", c"a/b", c"a/", c"../x", c"./x",
        ] {
            let error = component(bad).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{bad:?}");
        }
        let long = std::ffi::CString::new([b'a'; 256]).unwrap();
        assert_eq!(
            component(&long).unwrap_err().raw_os_error(),
            Some(libc::ENAMETOOLONG)
        );
        let longest = std::ffi::CString::new([b'a'; 255]).unwrap();
        assert!(component(&longest).is_ok());
    }
}
