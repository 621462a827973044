//! How an instruction ends that does not simply complete.

use crate::HypervisorError;

/// Why an instruction could not be completed: the machine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EmulateError {
    /// Neither KVM nor this module knows it.
    #[error("instruction at {rip:#x} is not emulated: {text} ({bytes:02x?})")]
    Unknown {
        /// Where it is.
        rip: u64,
        /// Its name.
        text: String,
        /// Itself.
        bytes: Vec<u8>,
    },
    /// Not 64-bit mode with paging.
    #[error("instruction at {rip:#x}: only 64-bit mode is emulated")]
    Mode {
        /// Where it is.
        rip: u64,
    },
    /// It cannot be read.
    #[error("instruction at {rip:#x} is not in guest memory")]
    Fetch {
        /// Where it is.
        rip: u64,
    },
    /// KVM does not give or take a register.
    #[error(transparent)]
    Kvm(#[from] HypervisorError),
}

/// An exception (Intel SDM vol. 3, table 6-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub vector: u8,
    pub error_code: Option<u32>,
    /// For CR2.
    pub address: Option<u64>,
}

impl Exception {
    pub(super) const BREAKPOINT: Self = Self::plain(3, None);
    pub(super) const UNDEFINED: Self = Self::plain(6, None);
    pub(super) const NOT_AVAILABLE: Self = Self::plain(7, None);
    pub(super) const PROTECTION: Self = Self::plain(13, Some(0));

    const fn plain(vector: u8, error_code: Option<u32>) -> Self {
        Self {
            vector,
            error_code,
            address: None,
        }
    }

    pub(super) const fn page_fault(address: u64, error_code: u32) -> Self {
        Self {
            vector: 14,
            error_code: Some(error_code),
            address: Some(address),
        }
    }
}

/// Why an instruction did not complete.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It faults; nothing of it happened that may not have.
    Fault(Exception),
    /// It cannot be done.
    Error(EmulateError),
}

impl From<Exception> for Halt {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

impl From<HypervisorError> for Halt {
    fn from(error: HypervisorError) -> Self {
        Self::Error(error.into())
    }
}
