//! Host-initiated vsock connections, Firecracker's way (its docs/vsock.md): `CONNECT <port>\n` on an
//! AF_UNIX socket, answered by `OK <host port>\n` once the guest has accepted.

use std::path::Path;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::GuestError;

/// "OK 4294967295\n" has 14 bytes.
const ANSWER_LEN: usize = 32;

/// A connection to `port` of the guest.
pub(crate) async fn connect(vsock: &Path, port: u32) -> Result<UnixStream, GuestError> {
    let failed = |source| GuestError::Connect { port, source };
    let mut stream = UnixStream::connect(vsock).await.map_err(failed)?;
    let request = format!("CONNECT {port}\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    // Byte by byte: what follows the line belongs to the guest's stream.
    let mut answer = Vec::with_capacity(ANSWER_LEN);
    while answer.len() < ANSWER_LEN {
        match stream.read_u8().await {
            Ok(b'\n') if answer.starts_with(b"OK ") => return Ok(stream),
            Ok(b'\n') => break,
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(GuestError::Refused { port });
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Err(GuestError::Refused { port })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        net::UnixListener,
    };

    use super::*;

    async fn answered(answer: &'static [u8]) -> Result<Vec<u8>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            BufReader::new(&mut stream)
                .read_line(&mut line)
                .await
                .unwrap();
            stream.write_all(answer).await.unwrap();
            line
        });
        let connected = connect(&path, 1024)
            .await
            .map_err(|error| error.to_string());
        assert_eq!(server.await.unwrap(), "CONNECT 1024\n");
        let mut rest = Vec::new();
        connected?.read_to_end(&mut rest).await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_kept() {
        assert_eq!(answered(b"OK 1073741824\ndata").await.unwrap(), b"data");
    }

    #[rstest]
    #[case(b"")]
    #[case(b"OK 3")]
    #[case(b"NO\n")]
    #[case(b"OK 99999999999999999999999999999999999999999999999999\n")]
    #[tokio::test]
    async fn anything_else_is_a_refusal(#[case] answer: &'static [u8]) {
        let error = answered(answer).await.unwrap_err();
        assert!(error.contains("1024"), "{error}");
    }
}
