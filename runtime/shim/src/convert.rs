//! Between containerd's types and ours: errors, times, mounts, states.

use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::{
    api::{CreateTaskRequest, Status as TaskStatus},
    protobuf::well_known_types::timestamp::Timestamp,
    ttrpc::{self, Code, get_status},
};
use isopod_sandbox::{Error, RootfsMount, Status};

/// The code that containerd makes its own error of (containerd, errdefs/grpc.go).
pub fn code(error: &Error) -> Code {
    match error {
        Error::NotFound(_) => Code::NOT_FOUND,
        Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
        Error::WrongState(_) => Code::FAILED_PRECONDITION,
        Error::InvalidArgument(_) => Code::INVALID_ARGUMENT,
        Error::Unsupported(_) => Code::UNIMPLEMENTED,
        // UNAVAILABLE would tell kubelet that the whole runtime is down.
        Error::VmGone(_) | Error::Failed(_) => Code::UNKNOWN,
    }
}

/// An error as the caller gets it.
pub fn rpc_error(error: Error) -> ttrpc::Error {
    status_error(code(&error), error)
}

/// An error with a code of its own.
pub fn status_error(code: Code, message: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}

/// A point in time as protobuf has it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    }
}

/// A process's state as containerd names it.
pub fn status(status: Status) -> TaskStatus {
    match status {
        Status::Created => TaskStatus::CREATED,
        Status::Running => TaskStatus::RUNNING,
        Status::Paused => TaskStatus::PAUSED,
        Status::Stopped => TaskStatus::STOPPED,
    }
}

/// The mounts that make a container's root filesystem.
pub fn rootfs(request: &CreateTaskRequest) -> Vec<RootfsMount> {
    let mounts = request.rootfs.iter().map(|mount| RootfsMount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    });
    mounts.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn codes() {
        let text = || "x".to_owned();
        for (error, expected) in [
            (Error::NotFound(text()), Code::NOT_FOUND),
            (Error::AlreadyExists(text()), Code::ALREADY_EXISTS),
            (Error::WrongState(text()), Code::FAILED_PRECONDITION),
            (Error::InvalidArgument(text()), Code::INVALID_ARGUMENT),
            (Error::Unsupported(text()), Code::UNIMPLEMENTED),
            (Error::VmGone(text()), Code::UNKNOWN),
            (Error::Failed(text()), Code::UNKNOWN),
        ] {
            assert_eq!(code(&error), expected, "{error:?}");
            let ttrpc::Error::RpcStatus(status) = rpc_error(error) else {
                panic!("a status");
            };
            assert_eq!(status.message, "x");
        }
    }

    #[test]
    fn times() {
        let at = UNIX_EPOCH + Duration::new(7, 9);
        assert_eq!((timestamp(at).seconds, timestamp(at).nanos), (7, 9));
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(timestamp(before).seconds, 0);
    }
}
