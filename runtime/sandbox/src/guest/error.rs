//! Why a call of the agent failed.

use std::{io, time::Duration};

use ttrpc::Code;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// The agent refused.
    #[error("{message}")]
    Refusal {
        /// What kind of refusal.
        code: Code,
        /// The agent's message.
        message: String,
    },
    /// The connection is gone.
    #[error("the connection to the agent was lost: {0}")]
    Lost(String),
    /// A vsock connection could not be made.
    #[error("connect to the guest's vsock port {port}: {source}")]
    Connect {
        /// The guest's port.
        port: u32,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens on the port.
    #[error("the guest refused a connection to its vsock port {port}")]
    Refused {
        /// The guest's port.
        port: u32,
    },
    /// A stream could not be introduced.
    #[error("introduce a stream to the agent: {0}")]
    Stream(io::Error),
    /// The agent did not answer.
    #[error("the agent did not answer within {0:?}")]
    TimedOut(Duration),
    /// Host and guest do not belong together.
    #[error(
        "the agent speaks protocol version {theirs}, this program {ours}: \
         the guest image is from another installation; `make install` installs both"
    )]
    Version {
        /// This program's.
        ours: u32,
        /// The agent's.
        theirs: u32,
    },
}

impl GuestError {
    /// The machine, not the request, is the reason: its end explains more.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Lost(_) | Self::Connect { .. } | Self::Refused { .. } | Self::Stream(_)
        )
    }

    /// The guest may be stopped, hung, or only slow.
    pub fn is_timeout(&self) -> bool {
        let late = Code::DEADLINE_EXCEEDED;
        matches!(self, Self::TimedOut(_))
            || matches!(self, Self::Refusal { code, .. } if *code == late)
    }

    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refusal {
                code: Code::NOT_FOUND,
                ..
            }
        )
    }
}

impl From<ttrpc::Error> for GuestError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Refusal {
                code: status.code(),
                message: super::convert::plain(&status.message),
            },
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<GuestError> for crate::Error {
    fn from(error: GuestError) -> Self {
        let text = error.to_string();
        match error {
            GuestError::Refusal { code, .. } => match code {
                Code::NOT_FOUND => Self::NotFound(text),
                Code::ALREADY_EXISTS => Self::AlreadyExists(text),
                Code::FAILED_PRECONDITION => Self::WrongState(text),
                Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => Self::InvalidArgument(text),
                Code::UNIMPLEMENTED => Self::Unsupported(text),
                _ => Self::Failed(text),
            },
            GuestError::Lost(_) => Self::VmGone(text),
            _ => Self::Failed(text),
        }
    }
}
