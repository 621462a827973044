//! What handles ask of the driver. Each call carries the place for its answer.

use oci_spec::runtime::LinuxResources;
use tokio::sync::{oneshot, watch};

use crate::{
    ContainerRequest, Created, Error, ExecRequest, Exit, ProcessId, ProcessState, Stats, Stdio,
};

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

pub(crate) enum Call {
    Create(Box<ContainerRequest>, Reply<Created>),
    Exec(ProcessId, Box<ExecRequest>, Reply<Stdio>),
    Start(ProcessId, Reply<u32>),
    State(ProcessId, Reply<ProcessState>),
    Wait(ProcessId, Reply<watch::Receiver<Option<Exit>>>),
    Kill(ProcessId, u32, bool, Reply<()>),
    Resize(ProcessId, u32, u32, Reply<()>),
    CloseStdin(ProcessId, Reply<()>),
    Delete(ProcessId, Reply<Exit>),
    Pids(String, Reply<Vec<(u32, String)>>),
    Stats(String, Reply<Stats>),
    Pause(String, Reply<()>),
    Resume(String, Reply<()>),
    Update(String, Box<LinuxResources>, Reply<()>),
    Shutdown(Reply<()>),
}
