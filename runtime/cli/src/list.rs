//! `isopod list`: the pods that run, by their shims and what descends from them.

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::processes::{self, Process};

const SHIM: &str = "containerd-shim-isopod-v2";

/// A pod.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Pod {
    /// containerd's namespace.
    namespace: String,
    /// The id of the container that the pod began with.
    id: String,
    processes: Vec<Member>,
}

/// What a pod is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// containerd's namespace.
    pub namespace: String,
    /// The id of the container that the pod began with.
    pub id: String,
}

/// The pods that run, by name.
pub fn names() -> Vec<Name> {
    let processes = processes::all();
    let servers = processes.iter().filter_map(|p| server(&p.arguments));
    let named = |(namespace, id)| Name { namespace, id };
    servers.map(named).collect()
}

/// The pod that `[NAMESPACE/]ID` names.
pub fn find(names: Vec<Name>, wanted: &str) -> anyhow::Result<Name> {
    let (namespace, id) = match wanted.split_once('/') {
        Some((namespace, id)) => (Some(namespace), id),
        None => (None, wanted),
    };
    let is_it = |name: &Name| {
        name.id == id && namespace.is_none_or(|namespace| name.namespace == namespace)
    };
    let mut found: Vec<Name> = names.into_iter().filter(is_it).collect();
    match (found.pop(), found.first()) {
        (Some(name), None) => Ok(name),
        (None, _) => bail!("no pod {wanted} runs here; `isopod list` tells which do"),
        (Some(_), Some(_)) => bail!("{wanted} runs in several namespaces: say NAMESPACE/{wanted}"),
    }
}

/// A process of a pod.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Member {
    name: String,
    pid: u32,
    /// Proportional set size; none when one may not look.
    pss_kib: Option<u64>,
}

/// Prints the pods.
pub fn run(json: bool) -> anyhow::Result<ExitCode> {
    let pods = pods(&processes::all());
    let text = if json {
        serde_json::to_string_pretty(&pods)? + "\n"
    } else {
        table(&pods)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("printing the pods")?;
    Ok(ExitCode::SUCCESS)
}

fn pods(all: &[Process]) -> Vec<Pod> {
    let mut pods: Vec<Pod> = all
        .iter()
        .filter_map(|process| {
            let (namespace, id) = server(&process.arguments)?;
            let family = processes::family(all, process.pid);
            let members = family.iter().map(|member| Member {
                name: program(member),
                pid: member.pid,
                pss_kib: member.pss_kib(),
            });
            Some(Pod {
                namespace,
                id,
                processes: members.collect(),
            })
        })
        .collect();
    pods.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
    pods
}

/// The pod that a command line serves: a shim with a socket, neither `start` nor `delete`.
fn server(arguments: &[String]) -> Option<(String, String)> {
    let program = Path::new(arguments.first()?).file_name()?;
    let value = |flag: &str| {
        let at = arguments.iter().position(|word| word == flag)?;
        arguments.get(at + 1).cloned()
    };
    value("-socket")?;
    let pod = (value("-namespace")?, value("-id")?);
    (program == SHIM).then_some(pod)
}

fn program(process: &Process) -> String {
    let path = process.arguments.first().map(Path::new);
    let name = path.and_then(Path::file_name);
    name.map_or_else(
        || process.name.clone(),
        |name| name.to_string_lossy().into(),
    )
}

fn table(pods: &[Pod]) -> String {
    use std::fmt::Write;
    if pods.is_empty() {
        return "No pods.\n".to_owned();
    }
    let mut text = String::new();
    for pod in pods {
        let total: u64 = pod.processes.iter().filter_map(|p| p.pss_kib).sum();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}/{}  {:.1} MiB", pod.namespace, pod.id, mib(total));
        for process in &pod.processes {
            let _ = writeln!(
                text,
                "  {:>8}  {:>8.1} MiB  {}",
                process.pid,
                mib(process.pss_kib.unwrap_or(0)),
                process.name
            );
        }
    }
    text
}

#[allow(clippy::cast_precision_loss)]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn servers_are_told_from_other_shims() {
        let pod = Some(("n".to_owned(), "c".to_owned()));
        for (line, expected) in [
            (
                "/b/containerd-shim-isopod-v2 -namespace n -id c -address /a -socket /s",
                pod,
            ),
            (
                "/b/containerd-shim-isopod-v2 -namespace n -id c start",
                None,
            ),
            (
                "/b/containerd-shim-runc-v2 -namespace n -id c -socket /s",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(server(&words(line)), expected, "{line}");
        }
    }

    #[test]
    fn a_table() {
        assert_eq!(table(&[]), "No pods.\n");
        let pods = [Pod {
            namespace: "n".into(),
            id: "c".into(),
            processes: vec![
                Member {
                    name: "shim".into(),
                    pid: 7,
                    pss_kib: Some(1024),
                },
                Member {
                    name: "qemu".into(),
                    pid: 8,
                    pss_kib: Some(512),
                },
            ],
        }];
        let text = table(&pods);
        assert!(text.starts_with("n/c  1.5 MiB\n"), "{text}");
        assert!(text.contains("         7       1.0 MiB  shim\n"), "{text}");
    }

    #[test]
    fn a_pod_is_found_by_its_id_or_with_its_namespace() {
        let name = |namespace: &str, id: &str| Name {
            namespace: namespace.into(),
            id: id.into(),
        };
        let names = vec![name("a", "x"), name("b", "x"), name("b", "y")];
        let found = |wanted| find(names.clone(), wanted).map_err(|error| error.to_string());
        assert_eq!(found("y"), Ok(name("b", "y")));
        assert_eq!(found("b/y"), Ok(name("b", "y")));
        assert_eq!(found("a/x"), Ok(name("a", "x")));
        assert!(found("x").unwrap_err().contains("several namespaces"));
        for none in ["z", "a/y", "", "/", "a/x/y"] {
            assert!(found(none).unwrap_err().contains("isopod list"), "{none}");
        }
    }
}
