//! The file server's device in this process, over a directory with another beside it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use isopod_fs::{queue::FsBackend, share::Share};
use isopod_memory::GuestMemoryHandle;
use isopod_virtio::{
    QueueT,
    testing::{Buffer, DriverQueue, GuestRam},
};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use vmm_sys_util::epoll::EventSet;

use crate::support::*;

/// A device in this process over a directory `share`, beside which lies `outside`.
pub struct Device {
    backend: FsBackend,
    vring: VringMutex<GuestMemoryHandle>,
    driver: DriverQueue,
    ram: GuestRam,
    request: u64,
    answer: u64,
    pub directory: tempfile::TempDir,
}

const ROOM: usize = 0x20000;

impl Device {
    pub fn new(descriptors: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let share = directory.path().join("share");
        fs::create_dir_all(share.join("d")).unwrap();
        fs::write(share.join("f"), "inside").unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "secret").unwrap();
        Self::serving(&share, directory, descriptors)
    }

    /// Serves `share`; `directory` goes with the device.
    pub fn serving(share: &Path, directory: tempfile::TempDir, descriptors: usize) -> Self {
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

    pub fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// Everything there is, beneath the share and beside it, with contents.
    pub fn everything(&self) -> Vec<String> {
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
