//! Runs one bundle in a pod of its own, without containerd: `pod [--config FILE] BUNDLE`, or removes
//! what a killed one left: `pod --clean-up BUNDLE`.
//! The bundle is an OCI bundle whose `root.path` holds the root filesystem. Prints what the launch did
//! to standard error; the container's output goes to ours, and its exit code is ours.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, bail};
use isopod_sandbox::{ContainerRequest, ProcessId, Sandbox, SandboxRequest, StdioRequest};
use isopod_settings::Settings;
use oci_spec::runtime::Spec;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(run())?;
    std::process::exit(i32::try_from(code)?);
}

async fn run() -> anyhow::Result<u32> {
    let mut config = None;
    let mut bundle = None;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--clean-up") => {
                let bundle = arguments.next().map(PathBuf::from).unwrap_or_default();
                Sandbox::clean_up(&bundle).await?;
                return Ok(0);
            }
            Some("--config") => config = arguments.next().map(PathBuf::from),
            _ => bundle = Some(PathBuf::from(argument)),
        }
    }
    let Some(bundle) = bundle else {
        bail!("usage: pod [--config FILE] BUNDLE");
    };
    let settings = Settings::load(config.as_deref())?;
    let spec = Spec::load(bundle.join("config.json")).context("config.json")?;
    let id = format!("pod-{}", std::process::id());
    let begin = Instant::now();
    let sandbox = Sandbox::launch(SandboxRequest {
        namespace: "example".into(),
        id: id.clone(),
        bundle: bundle.clone(),
        settings,
        spec: spec.clone(),
    })
    .await?;
    let ended = contain(&sandbox, &id, bundle, spec, begin).await;
    sandbox.shutdown().await?;
    eprintln!("shut down after {:?}", begin.elapsed());
    ended
}

async fn contain(
    sandbox: &Sandbox,
    id: &str,
    bundle: PathBuf,
    spec: Spec,
    begin: Instant,
) -> anyhow::Result<u32> {
    let report = sandbox.report();
    eprintln!(
        "{} ({}), kernel {}",
        report.engine, report.why, report.kernel_release
    );
    for stage in &report.stages {
        eprintln!("  {:16} {:?}", stage.name, stage.took);
    }
    for (name, pid) in &report.processes {
        eprintln!("  {name:16} pid {pid}");
    }
    let created = sandbox
        .create(ContainerRequest {
            id: id.to_owned(),
            bundle,
            spec,
            rootfs: Vec::new(),
            stdio: StdioRequest {
                stdout: true,
                stderr: true,
                ..StdioRequest::default()
            },
        })
        .await?;
    eprintln!("created after {:?}", begin.elapsed());
    let init = ProcessId {
        container: id.to_owned(),
        exec: String::new(),
    };
    let copies = [
        tokio::spawn(copy(created.stdio.stdout, false)),
        tokio::spawn(copy(created.stdio.stderr, true)),
    ];
    sandbox.start(init.clone()).await?;
    eprintln!("started after {:?}", begin.elapsed());
    let exit = sandbox.wait(init.clone()).await?;
    for copy in copies {
        copy.await??;
    }
    eprintln!("exit code {} after {:?}", exit.code, begin.elapsed());
    sandbox.delete(init).await?;
    Ok(exit.code)
}

async fn copy(from: Option<tokio::net::UnixStream>, error: bool) -> anyhow::Result<()> {
    use std::io::Write;
    use tokio::io::AsyncReadExt;
    let Some(mut from) = from else {
        return Ok(());
    };
    let mut bytes = [0; 4096];
    loop {
        let read = from.read(&mut bytes).await?;
        let Some(bytes) = bytes.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        if error {
            std::io::stderr().write_all(bytes)?;
        } else {
            std::io::stdout().write_all(bytes)?;
        }
    }
}
