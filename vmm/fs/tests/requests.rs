//! Requests that no kernel sends, straight into the device: nothing outside the share is touched,
//! nothing panics, and the guest gets an error.

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
};

use isopod_fs::{queue::FsBackend, share::Share};
use isopod_memory::GuestMemoryHandle;
use isopod_virtio::{
    QueueT,
    testing::{Buffer, DriverQueue, GuestRam},
};
use proptest::prelude::*;
use rstest::rstest;
use support::*;
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use vmm_sys_util::epoll::EventSet;

/// A device in this process over a directory `share`, beside which lies `outside`.
struct Device {
    backend: FsBackend,
    vring: VringMutex<GuestMemoryHandle>,
    driver: DriverQueue,
    ram: GuestRam,
    request: u64,
    answer: u64,
    directory: tempfile::TempDir,
}

const ROOM: usize = 0x20000;

impl Device {
    fn new(descriptors: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let share = directory.path().join("share");
        fs::create_dir_all(share.join("d")).unwrap();
        fs::write(share.join("f"), "inside").unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "secret").unwrap();
        Self::serving(&share, directory, descriptors)
    }

    /// Serves `share`; `directory` goes with the device.
    fn serving(share: &Path, directory: tempfile::TempDir, descriptors: usize) -> Self {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc/self/fd", flags, rustix::fs::Mode::empty()).unwrap();
        let share = Share::new(share, proc, descriptors).unwrap();

        let mut ram = GuestRam::new(1 << 20);
        let driver = DriverQueue::new(&mut ram, 16, false);
        let (request, answer) = (ram.allocate(ROOM as u64), ram.allocate(ROOM as u64));
        let memory = GuestMemoryHandle::new(ram.memory.clone());
        let vring = VringMutex::new(memory.clone(), 16).unwrap();
        *vring.get_mut().get_queue_mut() = driver.device_side();
        assert!(vring.get_mut().get_queue_mut().ready());
        let backend = FsBackend::new(share, 1, memory);
        let mut device = Self {
            backend,
            vring,
            driver,
            ram,
            request,
            answer,
            directory,
        };
        device.init();
        device
    }

    fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// Everything there is, beneath the share and beside it, with contents.
    fn everything(&self) -> Vec<String> {
        let mut found = vec![];
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let content = if meta.is_file() {
                    fs::read(&path).unwrap()
                } else {
                    vec![]
                };
                found.push(format!(
                    "{path:?} {:o} {} {content:?}",
                    meta.mode(),
                    meta.nlink()
                ));
                if meta.is_dir() {
                    directories.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

impl Guest for Device {
    fn send(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        self.ram.write(self.request, request);
        let buffers = [
            Buffer::Readable(self.request, request.len() as u32),
            Buffer::Writable(self.answer, room as u32),
        ];
        self.driver.offer(&buffers);
        let vrings = [self.vring.clone()];
        self.backend
            .handle_event(0, EventSet::IN, &vrings, 0)
            .unwrap();
        let used = self.driver.take_used().expect("the chain comes back");
        self.ram.read(self.answer, used.written as usize)
    }
}

/// Every request that carries a name, with that name. Those with two have it in both places in turn.
fn requests_with(device: &Device, name: &[u8]) -> Vec<(&'static str, u32, Vec<u8>)> {
    let _ = device;
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
    for (what, opcode, body) in requests_with(&device, name) {
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
        for (what, opcode, body) in requests_with(&device, path.as_os_str().as_encoded_bytes()) {
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

#[test]
fn numbers_that_were_never_given_out_are_refused() {
    let mut device = Device::new(100);
    let file = device.lookup(ROOT, b"f").unwrap();
    let handle = number(&device.call(OPEN, file, &words(&[0, 0])).unwrap(), 0, 8);
    for node in [0, 2000, u64::MAX] {
        assert!(device.lookup(node, b"f").is_err());
        // A handle belongs to the inode that it was opened by.
        assert!(
            device
                .call(RELEASE, node, &[longs(&[handle]), vec![0; 16]].concat())
                .is_err()
        );
    }
    device.call(FORGET_AND_ANSWER, file, &[]).unwrap_err();
    assert!(
        device
            .send(&message(FORGET, file, (0, 0), &longs(&[1])), 0x100)
            .is_empty()
    );
    assert_eq!(device.call(GETATTR, file, &[0; 16]), Err(libc::ESTALE));
    // The root cannot be forgotten.
    device.send(&message(FORGET, ROOT, (0, 0), &longs(&[u64::MAX])), 0x100);
    device.lookup(ROOT, b"f").unwrap();
}

/// An opcode that does not exist.
const FORGET_AND_ANSWER: u32 = 999;

#[test]
fn inodes_beyond_the_limit_are_let_go_and_found_again() {
    let mut device = Device::new(64);
    for n in 0..400 {
        fs::write(
            device.share().join(format!("d/{n}")),
            format!("content {n}"),
        )
        .unwrap();
    }
    let before = open_descriptors();
    let directory = device.lookup(ROOT, b"d").unwrap();
    let nodes: Vec<u64> = (0..400)
        .map(|n| device.lookup(directory, n.to_string().as_bytes()).unwrap())
        .collect();
    assert!(open_descriptors() < before + 200, "descriptors are bounded");
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(
            device.read(*node, 100).unwrap(),
            format!("content {n}").into_bytes()
        );
    }
    // The guest renames and unlinks files that are let go, and goes on with their numbers.
    for n in 0..200 {
        let names = [
            name_of(n.to_string().as_bytes()),
            name_of(format!("new{n}").as_bytes()),
        ];
        let body = [longs(&[directory]), names.concat()].concat();
        device.call(RENAME, directory, &body).unwrap();
    }
    for n in 200..400 {
        device
            .call(UNLINK, directory, &name_of(n.to_string().as_bytes()))
            .unwrap();
    }
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(
            device.read(*node, 100).unwrap(),
            format!("content {n}").into_bytes(),
            "{n}"
        );
    }
}

#[test]
fn a_let_go_inode_that_the_host_replaced_is_stale_not_another_file() {
    let mut device = Device::new(64);
    for n in 0..300 {
        fs::write(device.share().join(format!("d/{n}")), "old").unwrap();
    }
    let directory = device.lookup(ROOT, b"d").unwrap();
    let nodes: Vec<u64> = (0..300)
        .map(|n| device.lookup(directory, n.to_string().as_bytes()).unwrap())
        .collect();
    for n in 0..300 {
        let path = device.share().join(format!("d/{n}"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
    }
    let mut stale = 0;
    for node in nodes {
        match device.read(node, 100) {
            Ok(content) => assert_eq!(content, b"old", "held by its descriptor"),
            Err(libc::ESTALE) => stale += 1,
            Err(error) => panic!("errno {error}"),
        }
    }
    assert!(stale > 100, "{stale} were let go");
}

#[test]
fn directories_nested_beyond_reason_do_not_exhaust_the_stack() {
    let mut device = Device::new(64);
    let mut node = ROOT;
    for _ in 0..3000 {
        device
            .call(MKDIR, node, &[words(&[0o755, 0]), name_of(b"n")].concat())
            .unwrap();
        node = device.lookup(node, b"n").unwrap();
    }
    // The guest forgets everything at once.
    device.init();
    device.lookup(ROOT, b"n").unwrap();
}

#[test]
fn the_guests_cache_is_kept_exactly_while_the_content_is_the_same() {
    const KEEP_CACHE: u64 = 2;
    let mut device = Device::new(100);
    let path = device.share().join("f");
    let node = device.lookup(ROOT, b"f").unwrap();
    let mut keeps = || {
        let answer = device.call(OPEN, node, &words(&[0, 0])).unwrap();
        number(&answer, 8, 4) & KEEP_CACHE != 0
    };
    // Older than a tick of the file system's clock.
    let settle = || std::thread::sleep(std::time::Duration::from_millis(50));
    settle();
    assert!(!keeps(), "never opened before");
    assert!(keeps(), "nothing happened");
    fs::write(&path, "INSIDE").unwrap();
    assert!(!keeps(), "changed, of the same size");
    assert!(
        !keeps(),
        "changed so recently that it may change again unseen"
    );
    settle();
    assert!(!keeps());
    assert!(keeps());
}

#[test]
fn closing_is_told_only_where_the_host_has_something_to_say_then() {
    const NO_FLUSH: u64 = 1 << 5;
    let silent = |device: &mut Device, name: &[u8], flags: u32| {
        let node = device.lookup(ROOT, name).unwrap();
        let answer = device.call(OPEN, node, &words(&[flags, 0])).unwrap();
        number(&answer, 8, 4) & NO_FLUSH != 0
    };
    let (read, write) = (0, 1);
    let mut local = Device::new(100);
    assert!(silent(&mut local, b"f", read));
    assert!(silent(&mut local, b"f", write), "a local file system");
    let create = [words(&[0o101, 0o100644, 0, 0]), name_of(b"new")].concat();
    let answer = local.call(CREATE, ROOT, &create).unwrap();
    let open_out = answer.len() - 16;
    assert!(number(&answer, open_out + 8, 4) & NO_FLUSH != 0);

    // Not a file system that is known to be silent.
    let directory = tempfile::tempdir().unwrap();
    let proc = format!("/proc/{}", std::process::id());
    let mut other = Device::serving(Path::new(&proc), directory, 100);
    assert!(silent(&mut other, b"comm", read));
    assert!(!silent(&mut other, b"comm", write));
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_are_answered_and_break_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..300), room in 0usize..300) {
        let mut device = Device::new(100);
        let answer = device.send(&bytes, room);
        prop_assert!(answer.len() <= room);
        prop_assert_eq!(device.lookup(ROOT, b"f").is_ok(), true);
    }

    #[test]
    fn random_bodies_of_real_requests_stay_in_the_share(
        requests in proptest::collection::vec(
            (0u32..60, 0u64..8, proptest::collection::vec(any::<u8>(), 0..120)), 1..20
        ),
    ) {
        let mut device = Device::new(100);
        let outside = fs::metadata(device.directory.path().join("outside")).unwrap();
        for (opcode, node, body) in requests {
            // DESTROY and INIT reset the device and are legal; all others may fail, never panic.
            let answer = device.send(&message(opcode, node, (0, 0), &body), 0x8000);
            prop_assert!(answer.is_empty() || answer.len() >= 16);
        }
        let after = fs::metadata(device.directory.path().join("outside")).unwrap();
        prop_assert_eq!(outside.mtime_nsec(), after.mtime_nsec());
        prop_assert_eq!(fs::read(device.directory.path().join("outside/secret")).unwrap(), b"secret");
    }
}
