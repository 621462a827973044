//! Device nodes that every Linux has: the guest's own stand for them. Others belong to the host.

use std::path::Path;

/// Path, major, minor of character devices (Linux Documentation/admin-guide/devices.txt).
const GUESTS_OWN: &[(&str, i64, i64)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/kmsg", 1, 11),
    ("/dev/tty", 5, 0),
    ("/dev/console", 5, 1),
    ("/dev/ptmx", 5, 2),
    ("/dev/fuse", 10, 229),
    ("/dev/net/tun", 10, 200),
];

/// Whether a bind of this path means the guest's own device.
pub(crate) fn is_guests_own(path: &Path) -> bool {
    GUESTS_OWN
        .iter()
        .any(|(known, ..)| path == Path::new(known))
}

/// Whether a character device with these numbers exists in the guest.
pub(crate) fn exists_in_guest(major: i64, minor: i64) -> bool {
    GUESTS_OWN
        .iter()
        .any(|(_, known_major, known_minor)| (major, minor) == (*known_major, *known_minor))
}
