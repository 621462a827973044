//! Why a call fails, and the one mapping to ttrpc's status codes.

use isopod_container::{
    Failure, FailureKind, LaunchError, cgroup::CgroupError, id::IdError, spec::SpecError,
    state::WrongState,
};
use ttrpc::{Code, error::get_rpc_status};

use crate::streams::StreamError;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("no container {0:?}")]
    NoContainer(String),
    #[error("no process {exec:?} in container {container:?}")]
    NoProcess { container: String, exec: String },
    #[error("{subject} {id:?} exists already")]
    Exists { subject: &'static str, id: String },
    #[error("process already finished")]
    Finished,
    #[error(transparent)]
    State(#[from] WrongState),
    #[error("{0}")]
    Precondition(String),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{0}")]
    Argument(String),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Init(#[from] Failure),
    #[error("the process ended before it could start (exit code {0}): out of memory?")]
    Died(u32),
    #[error("{act}: {reason}")]
    Act { act: String, reason: String },
}

/// A step that failed.
pub(crate) fn act(act: impl Into<String>, reason: impl std::fmt::Display) -> Fault {
    Fault::Act {
        act: act.into(),
        reason: reason.to_string(),
    }
}

impl Fault {
    fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess { .. } | Self::Finished => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::State(_) | Self::Precondition(_) => Code::FAILED_PRECONDITION,
            Self::Id(_) | Self::Spec(_) | Self::Argument(_) => Code::INVALID_ARGUMENT,
            // The kernel refused a value that a field of the specification gave.
            Self::Cgroup(CgroupError::Set { .. }) => Code::INVALID_ARGUMENT,
            Self::Init(failure) => match failure.kind {
                FailureKind::Spec => Code::INVALID_ARGUMENT,
                FailureKind::Command | FailureKind::System => Code::UNKNOWN,
            },
            Self::Stream(_)
            | Self::Cgroup(_)
            | Self::Launch(_)
            | Self::Died(_)
            | Self::Act { .. } => Code::INTERNAL,
        }
    }
}

impl From<Fault> for ttrpc::Error {
    fn from(fault: Fault) -> Self {
        get_rpc_status(fault.code(), fault)
    }
}
