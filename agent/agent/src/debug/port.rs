//! The port at the machine's virtio console by which the host asks when neither vsock nor the agent's calls
//! can be had (kernel, drivers/char/virtio_console.c). Whether a machine has one, its owner said before it
//! booted; without one nothing is opened here and nothing waits.
//!
//! ```text
//! no console: over
//! console ── uevent: a port has its name ──> open ──> away ──host opens──> there ──┐
//!                                                      ^--------host closes-------┘
//! ```
//!
//! A file of the driver is always readable while the host is away, at its end, and says so by a hang-up that
//! lasts. A runtime that waits for readiness would turn round and round. The edges of an epoll of its own
//! tell when something has changed, and the runtime waits for that epoll.

use std::{
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
};

use isopod_protocol::debug::PORT;
use rustix::{
    event::{Timespec, epoll},
    fs::{Mode, OFlags, open},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, socket_with,
    },
};
use tokio::{io::unix::AsyncFd, sync::Semaphore};

use super::{LookError, answer, echo, encode, lines::Lines};
use crate::{log, pod::Pod, sys};

/// Devices that have a driver are linked here.
const CONSOLES: &str = "/sys/bus/virtio/drivers/virtio_console";
/// A directory for each port; its name is in `name`.
const PORTS: &str = "/sys/class/virtio-ports";
/// Looks that hang at a time.
const LOOKS: usize = 4;
/// Bytes that are read at a time; the driver's buffers have a page.
const READ: usize = 4096;
/// The multicast group in which the kernel tells of its devices.
const KERNEL_EVENTS: u32 = 1;

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Answers at the port for ever, if there is one.
pub(super) async fn serve(pod: Arc<Pod>) {
    let served = async {
        match Port::appear().await? {
            Some(port) => converse(&port, &pod).await,
            None => Ok(()),
        }
    };
    if let Err(error) = served.await {
        log::warning(&format!("debug console at the port {PORT}: {error}"));
    }
}

async fn converse(port: &Port, pod: &Arc<Pod>) -> io::Result<()> {
    let looks = Arc::new(Semaphore::new(LOOKS));
    let mut lines = Lines::default();
    let mut buffer = [0; READ];
    loop {
        let count = port.read(&mut buffer).await?;
        let mut bytes = buffer.get(..count).unwrap_or_default();
        while let Some(line) = lines.next(&mut bytes) {
            let answered = match line {
                Err(()) => encode(Err(LookError::TooLong)),
                Ok(line) => match (echo(&line), Arc::clone(&looks).try_acquire_owned()) {
                    (Some(echo), _) => echo,
                    (None, Ok(place)) => encode(answer(&line, pod, place).await),
                    (None, Err(_)) => encode(Err(LookError::Hang)),
                },
            };
            port.write(&answered).await?;
        }
    }
}

/// An open port.
struct Port {
    file: OwnedFd,
    /// With the file in it, by edges.
    changes: AsyncFd<OwnedFd>,
}

impl Port {
    /// Waits until the driver has the port; `None` when there is no console to have one.
    async fn appear() -> io::Result<Option<Self>> {
        let linked = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("virtio"))
        };
        if !fs::read_dir(CONSOLES).is_ok_and(|mut entries| entries.any(linked)) {
            return Ok(None);
        }
        // Before the first look, so that nothing is missed between a look and the wait.
        let events = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::KOBJECT_UEVENT),
        )?;
        bind(&events, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
        let events = sys::watch(events)?;
        loop {
            if let Some(name) = find(Path::new(PORTS)) {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let file = open(Path::new("/dev").join(name), flags, Mode::empty())?;
                return Self::new(file).map(Some);
            }
            events.readable().await?.clear_ready();
            // What they say does not matter, nor that some were lost (ENOBUFS): it is looked at anew.
            while recv(events.get_ref(), &mut [0; 64], RecvFlags::TRUNC).is_ok() {}
        }
    }

    /// Takes an open file that does not block.
    fn new(file: OwnedFd) -> io::Result<Self> {
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wanted = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&changes, &file, epoll::EventData::new_u64(0), wanted)?;
        Ok(Self {
            file,
            changes: sys::watch(changes)?,
        })
    }

    /// Waits for bytes, however often the host leaves and comes back in between.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.file, &mut *buffer) {
                Ok(count) if count > 0 => return Ok(count),
                Err(Errno::INTR) => {}
                Ok(_) | Err(Errno::AGAIN) => self.change().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes all. What is left when the host leaves, whoever comes next gets and throws away: that he is
    /// there may be known here later than what he says.
    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.change().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until the driver says that something has changed. To be called by who has tried and could not.
    async fn change(&self) -> io::Result<()> {
        self.changes.readable().await?.clear_ready();
        let mut events = [MaybeUninit::uninit(); 1];
        epoll::wait(self.changes.get_ref().as_fd(), &mut events, Some(&NOW))?;
        Ok(())
    }
}

/// The device node of the port that has our name.
fn find(ports: &Path) -> Option<String> {
    let named = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        let node = entry.file_name().into_string().ok()?;
        (name.trim_end() == PORT).then_some(node)
    };
    fs::read_dir(ports).ok()?.find_map(named)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::unix::net::UnixStream, time::Duration};

    use tokio::time::timeout;

    use super::*;

    /// For what must not happen.
    const A_WHILE: Duration = Duration::from_millis(50);

    /// As the driver's file: at its end while nobody is there, with a hang-up that lasts.
    #[tokio::test]
    async fn a_host_that_leaves_and_comes_back_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("port");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let port = Port::new(open(&path, flags, Mode::empty()).unwrap()).unwrap();
        let mut buffer = [0; 64];
        for word in ["first", "second"] {
            assert!(timeout(A_WHILE, port.read(&mut buffer)).await.is_err());
            let mut host = File::options().write(true).open(&path).unwrap();
            host.write_all(word.as_bytes()).unwrap();
            drop(host);
            let count = port.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..count], word.as_bytes());
            // The hang-up is there now, and it is no change.
            let mut changes = 0;
            while timeout(A_WHILE, port.change()).await.is_ok() {
                changes += 1;
                assert!(changes < 8, "the runtime turns round and round");
            }
        }
    }

    #[tokio::test]
    async fn what_the_host_does_not_read_yet_is_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let port = Port::new(ours.into()).unwrap();
        let answer = vec![b'x'; 1 << 20];
        assert!(timeout(A_WHILE, port.write(&answer)).await.is_err());
        let mut theirs = theirs;
        let reader = std::thread::spawn(move || {
            io::copy(&mut io::Read::by_ref(&mut theirs), &mut io::sink()).unwrap()
        });
        port.write(&answer).await.unwrap();
        drop(port);
        assert!(reader.join().unwrap() > 1 << 20);
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        assert_eq!(find(&class.path().join("none")), None);
        for (node, name) in [("vport0p0", None), ("vport0p2", Some("other\n"))] {
            fs::create_dir(class.path().join(node)).unwrap();
            if let Some(name) = name {
                fs::write(class.path().join(node).join("name"), name).unwrap();
            }
        }
        assert_eq!(find(class.path()), None);
        fs::create_dir(class.path().join("vport0p1")).unwrap();
        fs::write(class.path().join("vport0p1/name"), "isopod.debug\n").unwrap();
        assert_eq!(find(class.path()).as_deref(), Some("vport0p1"));
    }
}
