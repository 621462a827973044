//! Names and links that would lead out of the share.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, symlink},
};

use rstest::rstest;

use crate::{device::Device, support::*};

/// Every request that carries a name, with that name. Those with two have it in both places in turn.
fn requests_with(name: &[u8]) -> Vec<(&'static str, u32, Vec<u8>)> {
    let n = name_of(name);
    let good = name_of(b"good");
    let of = |head: Vec<u8>, names: &[&Vec<u8>]| {
        let names = names.iter().flat_map(|name| name.iter().copied());
        head.into_iter().chain(names).collect::<Vec<u8>>()
    };
    let create = words(&[0o2, 0o100644, 0, 0]);
    vec![
        ("lookup", LOOKUP, n.clone()),
        ("symlink", SYMLINK, of(vec![], &[&n, &good])),
        ("mknod", MKNOD, of(words(&[0o100644, 0, 0, 0]), &[&n])),
        ("mkdir", MKDIR, of(words(&[0o755, 0]), &[&n])),
        ("unlink", UNLINK, n.clone()),
        ("rmdir", RMDIR, n.clone()),
        ("rename from", RENAME, of(longs(&[ROOT]), &[&n, &good])),
        (
            "rename to",
            RENAME,
            of(longs(&[ROOT]), &[&name_of(b"f"), &n]),
        ),
        (
            "rename2 from",
            RENAME2,
            of([longs(&[ROOT]), words(&[0, 0])].concat(), &[&n, &good]),
        ),
        (
            "rename2 to",
            RENAME2,
            of(
                [longs(&[ROOT]), words(&[2, 0])].concat(),
                &[&name_of(b"f"), &n],
            ),
        ),
        ("link", LINK, of(longs(&[ROOT]), &[&n])),
        ("create", CREATE, of(create, &[&n])),
    ]
}

#[rstest]
#[case::empty(b"")]
#[case::dot(b".")]
#[case::dot_dot(b"..")]
#[case::slash(b"/")]
#[case::path(b"d/x")]
#[case::up(b"../outside/secret")]
#[case::up_new(b"../outside/new")]
#[case::trailing(b"d/")]
#[case::too_long(&[b'n'; 256])]
#[case::far_too_long(&[b'n'; 5000])]
fn hostile_names_touch_nothing(#[case] name: &[u8]) {
    let mut device = Device::new(100);
    let before = device.everything();
    for (what, opcode, body) in requests_with(name) {
        let result = device.call(opcode, ROOT, &body);
        assert!(result.is_err(), "{what} accepts {name:?}");
        assert_eq!(
            device.everything(),
            before,
            "{what} with {name:?} changed something"
        );
    }
}

#[test]
fn absolute_names_touch_nothing() {
    let mut device = Device::new(100);
    let before = device.everything();
    for file in ["secret", "new"] {
        let path = device.directory.path().join("outside").join(file);
        for (what, opcode, body) in requests_with(path.as_os_str().as_encoded_bytes()) {
            let error = device.call(opcode, ROOT, &body).expect_err(what);
            assert_eq!(error, libc::EINVAL, "{what}");
            assert_eq!(device.everything(), before, "{what} changed something");
        }
    }
}

#[test]
fn a_name_ends_at_its_first_nul() {
    let mut device = Device::new(100);
    // What is behind the NUL of a single name is not part of it, whatever it is.
    device
        .call(
            MKDIR,
            ROOT,
            &[words(&[0o755, 0]), name_of(b"in\0/../../outside/x")].concat(),
        )
        .unwrap();
    assert!(device.share().join("in").is_dir());
    assert!(!device.directory.path().join("outside/x").exists());
}

#[test]
fn a_name_without_an_end_is_refused() {
    let mut device = Device::new(100);
    for opcode in [LOOKUP, UNLINK, RMDIR, SYMLINK] {
        assert!(device.call(opcode, ROOT, b"f").is_err());
    }
    assert!(
        device
            .call(
                CREATE,
                ROOT,
                &[words(&[2, 0o644, 0, 0]), b"g".to_vec()].concat()
            )
            .is_err()
    );
}

#[test]
fn links_out_of_the_share_are_never_followed() {
    let mut device = Device::new(100);
    let outside = device.directory.path().join("outside");
    symlink(&outside, device.share().join("to-dir")).unwrap();
    symlink(outside.join("secret"), device.share().join("to-file")).unwrap();
    symlink("../outside/secret", device.share().join("up")).unwrap();
    let before = device.everything();
    for link in ["to-file", "up", "to-dir"] {
        let node = device.lookup(ROOT, link.as_bytes()).unwrap();
        // It is the link itself: it is not opened, not listed, and nothing is in it.
        assert_eq!(device.read(node, 100), Err(libc::EBADF), "{link}");
        assert_eq!(
            device.call(OPENDIR, node, &words(&[0, 0])),
            Err(libc::EBADF),
            "{link}"
        );
        assert_eq!(device.lookup(node, b"secret"), Err(libc::ENOTDIR), "{link}");
        // Creating over it does not go through it.
        let create = [words(&[0o1, 0o100644, 0, 0]), name_of(link.as_bytes())].concat();
        assert!(device.call(CREATE, ROOT, &create).is_err(), "{link}");
        assert!(
            device
                .call(MKDIR, node, &[words(&[0o755, 0]), name_of(b"x")].concat())
                .is_err()
        );
    }
    assert_eq!(device.everything(), before);
}

#[test]
fn an_absolute_link_target_is_only_text() {
    let mut device = Device::new(100);
    let target = device.directory.path().join("outside/new");
    let target = target.as_os_str().as_encoded_bytes();
    device
        .call(SYMLINK, ROOT, &[name_of(b"l"), name_of(target)].concat())
        .unwrap();
    let node = device.lookup(ROOT, b"l").unwrap();
    assert_eq!(device.call(READLINK, node, b"").unwrap(), target);
}

#[test]
fn devices_and_fifos_are_made_but_never_opened() {
    let mut device = Device::new(100);
    let fifo = [words(&[libc::S_IFIFO | 0o644, 0, 0, 0]), name_of(b"p")].concat();
    device.call(MKNOD, ROOT, &fifo).unwrap();
    assert!(
        fs::metadata(device.share().join("p"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let node = device.lookup(ROOT, b"p").unwrap();
    assert_eq!(device.read(node, 1), Err(libc::EBADF));
    // O_PATH, O_TMPFILE and O_DIRECTORY in the flags change nothing of that.
    for flags in [0o10000000, 0o20200000, 0o200000] {
        assert_eq!(
            device.call(OPEN, node, &words(&[flags, 0])),
            Err(libc::EBADF)
        );
    }
}
