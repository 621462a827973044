//! Getting a vCPU out of `KVM_RUN` from another thread, without a moment in which it is missed.
//!
//! KVM looks at `immediate_exit` in the vCPU's shared page when it is about to enter the guest, and a
//! signal ends `KVM_RUN` when it is inside (kernel, Documentation/virt/kvm/api.rst, 5). The kicker sets
//! the byte first and sends the signal second, so whichever moment the vCPU is in, one of the two
//! meets it. The signal's handler does nothing.

use std::{
    io,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI32, AtomicU8, Ordering},
    },
};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use crate::HypervisorError;

/// The first page of a vCPU's shared memory, mapped once more: the vCPU's own mapping goes with the
/// vCPU, this one stays as long as somebody may kick.
struct SharedPage(NonNull<libc::c_void>);

// SAFETY: only the byte `immediate_exit` is touched through it, and only as an atomic.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

const PAGE: usize = size_of::<kvm_run>();

impl SharedPage {
    fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing. KVM's vCPU file
        // is at least as long as `kvm_run`.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        NonNull::new(address)
            .filter(|address| address.as_ptr() != libc::MAP_FAILED)
            .map(Self)
            .ok_or_else(io::Error::last_os_error)
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let at = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the byte lies inside the mapping, which lives as long as `self`. The kernel only reads
        // it; all writes of this process that can race go through this atomic.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr().cast::<u8>().add(at)) }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; `immediate_exit` borrows from `self`.
        unsafe { libc::munmap(self.0.as_ptr(), PAGE) };
    }
}

/// Kicks one vCPU. Clones kick the same.
#[derive(Clone)]
pub(crate) struct Kick {
    page: Arc<SharedPage>,
    /// Of the thread that runs the vCPU; 0 while none does.
    thread: Arc<AtomicI32>,
}

impl Kick {
    pub fn new(vcpu: &VcpuFd) -> Result<Self, HypervisorError> {
        let page = SharedPage::new(vcpu).map_err(|source| HypervisorError::Thread {
            act: "map a vCPU's shared page",
            source,
        })?;
        install_handler()?;
        Ok(Self {
            page: Arc::new(page),
            thread: Arc::new(AtomicI32::new(0)),
        })
    }

    /// The calling thread runs the vCPU from now on.
    pub fn enter(&self) {
        // SAFETY: gettid cannot fail and touches no memory.
        let id = unsafe { libc::gettid() };
        self.thread.store(id, Ordering::SeqCst);
    }

    /// The thread will not run it any more: no signal will be sent.
    pub fn leave(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// To be called by the vCPU's thread after each `KVM_RUN` that was interrupted, *before* it looks
    /// at what is wanted of it.
    pub fn take(&self) {
        self.page.immediate_exit().store(0, Ordering::SeqCst);
    }

    /// Makes the vCPU leave `KVM_RUN`, or not enter it. What is wanted of it must have been written
    /// down before.
    pub fn kick(&self) {
        self.page.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: sends a signal whose handler does nothing to a thread of this process. Should the
            // number belong to another thread by now, that one's system call is interrupted, no more.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

/// The first real-time signal that the C library leaves to programs.
fn signal() -> i32 {
    libc::SIGRTMIN()
}

/// Once per process; without SA_RESTART, so that `KVM_RUN` returns.
fn install_handler() -> Result<(), HypervisorError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    extern "C" fn nothing(_: libc::c_int) {}
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: `sigaction` is plain data for which all zeroes is an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the handler touches nothing, so it may interrupt anything.
        match unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    });
    installed.map_err(|errno| HypervisorError::Thread {
        act: "handle the signal that kicks vCPUs",
        source: io::Error::from_raw_os_error(errno),
    })
}
