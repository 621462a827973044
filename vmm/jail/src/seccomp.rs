//! System call filters as data: a table of calls, each with the arguments it may have and, where it
//! is not obvious, the reason it is there.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{Error, violation};

/// One system call of a table.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number (`libc::SYS_*`).
    pub number: i64,
    /// Conditions of which all must hold; none: any arguments.
    pub arguments: &'static [Argument],
    /// Why it is in the table.
    pub reason: &'static str,
}

impl Call {
    /// A call with any arguments.
    #[must_use]
    pub const fn any(number: i64, reason: &'static str) -> Self {
        Self {
            number,
            arguments: &[],
            reason,
        }
    }

    /// A call whose arguments must satisfy all conditions.
    #[must_use]
    pub const fn with(number: i64, arguments: &'static [Argument], reason: &'static str) -> Self {
        Self {
            number,
            arguments,
            reason,
        }
    }
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Which, from 0.
    pub index: u8,
    /// What it must be.
    pub check: Check,
}

/// What an argument must be. Compared as 32 bits: the kernel ignores the upper half of what is
/// tested with these tables (flags, commands).
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// This value.
    Equals(u32),
    /// `argument & mask == value`.
    Masked {
        /// Bits that are looked at.
        mask: u32,
        /// What they must be.
        value: u32,
    },
}

/// What a table means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What the table names may pass; anything else ends the process by SIGSYS, and is told by name
    /// after [`crate::violation::report`].
    Allow,
    /// What the table names fails with this error number; anything else passes.
    Deny(i32),
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Filter {
    name: &'static str,
    program: BpfProgram,
}

impl Filter {
    /// Compiles a table for this processor.
    ///
    /// # Errors
    /// A condition that cannot be expressed.
    pub fn compile(name: &'static str, mode: Mode, table: &[Call]) -> Result<Self, Error> {
        let failed = |source| Error::CompileFilter {
            filter: name,
            source,
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        // A call that is named without conditions passes whatever other rows say of it.
        for call in table.iter().filter(|c| !c.arguments.is_empty()) {
            let conditions = call
                .arguments
                .iter()
                .map(condition)
                .collect::<Result<Vec<_>, _>>();
            let rule = conditions.and_then(SeccompRule::new).map_err(failed)?;
            rules.entry(call.number).or_default().push(rule);
        }
        for call in table.iter().filter(|c| c.arguments.is_empty()) {
            rules.insert(call.number, Vec::new());
        }
        let (mismatch, matched) = match mode {
            Mode::Allow => (SeccompAction::Trap, SeccompAction::Allow),
            Mode::Deny(errno) => (
                SeccompAction::Allow,
                SeccompAction::Errno(errno.unsigned_abs()),
            ),
        };
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
        let filter = SeccompFilter::new(rules, mismatch, matched, arch).map_err(failed)?;
        let program = filter.try_into().map_err(failed)?;
        Ok(Self { name, program })
    }

    /// Installs the filter on the calling thread and the threads that it will make. Filters add up:
    /// the strictest answer counts.
    ///
    /// # Errors
    /// seccomp(2) failed.
    pub fn install(&self) -> Result<(), Error> {
        violation::note(self.name);
        seccompiler::apply_filter(&self.program).map_err(|source| Error::InstallFilter {
            filter: self.name,
            source,
        })
    }

    /// Installs the filter on every thread of the process at once.
    ///
    /// # Errors
    /// seccomp(2) failed, or a thread has filters that this thread has not.
    pub fn install_on_all_threads(&self) -> Result<(), Error> {
        violation::note(self.name);
        seccompiler::apply_filter_all_threads(&self.program).map_err(|source| {
            Error::InstallFilter {
                filter: self.name,
                source,
            }
        })
    }
}

fn condition(argument: &Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match argument.check {
        Check::Equals(value) => (SeccompCmpOp::Eq, value),
        Check::Masked { mask, value } => (SeccompCmpOp::MaskedEq(u64::from(mask)), value),
    };
    SeccompCondition::new(
        argument.index,
        SeccompCmpArgLen::Dword,
        operator,
        u64::from(value),
    )
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::unix::net::UnixDatagram, thread};

    use super::*;

    const NO_INTERNET: &[Call] = &[Call::with(
        libc::SYS_socket,
        &[Argument {
            index: 0,
            check: Check::Equals(libc::AF_INET as u32),
        }],
        "tested here",
    )];

    /// Filters stay: each test has a thread of its own.
    fn filtered<T: Send + 'static>(
        mode: Mode,
        table: &'static [Call],
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        thread::spawn(move || {
            crate::sys::set_no_new_privs().unwrap();
            Filter::compile("test", mode, table)
                .unwrap()
                .install()
                .unwrap();
            job()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn a_denied_call_fails_with_the_error_and_others_pass() {
        let (denied, passed) = filtered(Mode::Deny(libc::EXDEV), NO_INTERNET, || {
            (UdpSocket::bind("127.0.0.1:0"), UnixDatagram::unbound())
        });
        assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EXDEV));
        passed.unwrap();
    }

    #[test]
    fn bits_of_an_argument_decide() {
        const NO_STREAMS: &[Call] = &[Call::with(
            libc::SYS_socket,
            &[Argument {
                index: 1,
                check: Check::Masked {
                    mask: 0xf,
                    value: libc::SOCK_STREAM as u32,
                },
            }],
            "tested here",
        )];
        let (stream, datagram) = filtered(Mode::Deny(libc::EXDEV), NO_STREAMS, || {
            (
                std::net::TcpListener::bind("127.0.0.1:0"),
                UnixDatagram::unbound(),
            )
        });
        assert_eq!(stream.unwrap_err().raw_os_error(), Some(libc::EXDEV));
        datagram.unwrap();
    }

    #[test]
    fn a_row_without_conditions_wins() {
        const BOTH: &[Call] = &[NO_INTERNET[0], Call::any(libc::SYS_socket, "tested here")];
        let socket = filtered(Mode::Deny(libc::EXDEV), BOTH, UnixDatagram::unbound);
        assert_eq!(socket.unwrap_err().raw_os_error(), Some(libc::EXDEV));
    }
}
