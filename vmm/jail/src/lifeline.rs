//! The lifeline: a pipe or socket whose other end only the owner holds.

use std::os::fd::{AsFd, AsRawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Error;

/// Is the owner still there?
///
/// # Errors
/// [`Error::OwnerGone`] when it is not.
pub fn check(lifeline: impl AsFd) -> Result<(), Error> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if ended(lifeline.as_fd(), Some(&now))? {
        return Err(Error::OwnerGone(lifeline.as_fd().as_raw_fd()));
    }
    Ok(())
}

/// Waits until the owner is gone.
///
/// # Errors
/// When the descriptor cannot be watched: to be taken as the end, too.
pub fn wait(lifeline: impl AsFd) -> Result<(), Error> {
    while !ended(lifeline.as_fd(), None)? {}
    Ok(())
}

fn ended(lifeline: std::os::fd::BorrowedFd<'_>, timeout: Option<&Timespec>) -> Result<bool, Error> {
    // Data is never sent on a lifeline, so it is not asked for: HUP and ERR are always reported.
    let mut fds = [PollFd::from_borrowed_fd(lifeline, PollFlags::RDHUP)];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => {
            return Err(Error::Lifeline {
                fd: lifeline.as_raw_fd(),
                source: e.into(),
            });
        }
    }
    Ok(!fds[0].revents().is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pipe_and_a_socket_tell_the_end_of_their_owner() {
        let (read, write) = std::io::pipe().unwrap();
        check(&read).unwrap();
        drop(write);
        assert!(matches!(check(&read), Err(Error::OwnerGone(_))));
        wait(&read).unwrap();

        let (ours, theirs) = UnixStream::pair().unwrap();
        check(&ours).unwrap();
        drop(theirs);
        assert!(matches!(check(&ours), Err(Error::OwnerGone(_))));
    }
}
