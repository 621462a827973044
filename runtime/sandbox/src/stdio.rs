//! Standard streams: each is a vsock connection of its own, opened before the call that names it.

use crate::{
    Stdio, StdioRequest,
    guest::{Guest, GuestError, StreamIds},
};

/// Streams that are open and introduced.
#[derive(Debug)]
pub(crate) struct Streams {
    pub ids: StreamIds,
    pub stdio: Stdio,
}

/// Numbers streams: 1, 2, 3, ... unique in a pod.
#[derive(Debug, Default)]
pub(crate) struct StreamNumbers {
    last: u64,
}

impl StreamNumbers {
    /// Numbers for what a process asks for. With a terminal, standard error is its output.
    pub fn assign(&mut self, request: StdioRequest) -> StreamIds {
        let mut number = |wanted: bool| {
            if !wanted {
                return 0;
            }
            // A pod that opens a stream every nanosecond lasts 500 years.
            self.last = self.last.wrapping_add(1);
            self.last
        };
        StreamIds {
            terminal: request.terminal,
            stdin: number(request.stdin),
            stdout: number(request.stdout),
            stderr: number(request.stderr && !request.terminal),
        }
    }
}

/// Opens the numbered streams.
pub(crate) async fn open(guest: &Guest, ids: StreamIds) -> Result<Streams, GuestError> {
    let one = async |id: u64| match id {
        0 => Ok(None),
        id => guest.open_stream(id).await.map(Some),
    };
    let (stdin, stdout, stderr) =
        tokio::try_join!(one(ids.stdin), one(ids.stdout), one(ids.stderr))?;
    Ok(Streams {
        ids,
        stdio: Stdio {
            stdin,
            stdout,
            stderr,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_numbered_once_and_only_when_wanted() {
        let mut numbers = StreamNumbers::default();
        let all = StdioRequest {
            terminal: false,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        let first = numbers.assign(all);
        assert_eq!((first.stdin, first.stdout, first.stderr), (1, 2, 3));
        let terminal = numbers.assign(StdioRequest {
            terminal: true,
            ..all
        });
        assert_eq!(
            (terminal.stdin, terminal.stdout, terminal.stderr),
            (4, 5, 0)
        );
        assert_eq!(
            numbers.assign(StdioRequest::default()),
            StreamIds::default()
        );
    }
}
