//! The specification's hooks: which run on the host, which in the guest.
//!
//! | hook | where | when |
//! |---|---|---|
//! | prestart, createRuntime | host | the pod runs and the container's files are in place, before it is made in the guest |
//! | createContainer, startContainer | guest, in the container | see `agent/container` |
//! | poststart | host | the command runs, before Start answers |
//! | poststop | host | the container is removed, before Delete answers |
//!
//! Who may write a specification may run programs as root on the host, with runc as here: containerd's
//! clients and its NRI and CDI plugins, never a tenant's pod.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Hook, Hooks, Spec};
use serde::{Deserialize, Serialize};

use super::PlanError;

/// A hook and its place in the specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlacedHook {
    /// `hooks.poststart[0]`.
    pub field: String,
    pub hook: Hook,
}

/// The hooks of a container that run on the host, and what they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostHooks {
    pub create: Vec<PlacedHook>,
    pub poststart: Vec<PlacedHook>,
    pub poststop: Vec<PlacedHook>,
    version: String,
    id: String,
    /// Hooks begin here.
    pub bundle: PathBuf,
    annotations: HashMap<String, String>,
}

/// The state of a container, as hooks read it (OCI runtime specification, runtime.md, State).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: &'a HashMap<String, String>,
}

impl HostHooks {
    /// Takes the host's hooks out of a specification; the guest's stay. Checks all of them.
    pub fn take(id: &str, bundle: &Path, spec: &mut Spec) -> Result<Self, PlanError> {
        let Some(hooks) = spec.hooks().clone() else {
            return Ok(Self::default());
        };
        #[allow(deprecated)] // prestart is deprecated, but Docker uses it
        let mut create = place("prestart", hooks.prestart())?;
        create.extend(place("createRuntime", hooks.create_runtime())?);
        place("createContainer", hooks.create_container())?;
        place("startContainer", hooks.start_container())?;
        let host = Self {
            create,
            poststart: place("poststart", hooks.poststart())?,
            poststop: place("poststop", hooks.poststop())?,
            version: spec.version().clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            annotations: spec.annotations().clone().unwrap_or_default(),
        };
        let mut guests = Hooks::default();
        guests.set_create_container(hooks.create_container().clone());
        guests.set_start_container(hooks.start_container().clone());
        spec.set_hooks(Some(guests));
        Ok(host)
    }

    /// The state for a hook's standard input. `pid` is the machine's: what the host sees of a container.
    pub fn state(&self, status: &str, pid: Option<u32>) -> Vec<u8> {
        let state = State {
            oci_version: &self.version,
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        // Strings and a number always have a JSON form.
        serde_json::to_vec(&state).unwrap_or_default()
    }
}

fn place(name: &str, hooks: &Option<Vec<Hook>>) -> Result<Vec<PlacedHook>, PlanError> {
    let hooks = hooks.iter().flatten().enumerate();
    hooks
        .map(|(place, hook)| {
            let field = format!("hooks.{name}[{place}]");
            if !hook.path().is_absolute() {
                let why = format!("{:?} is not an absolute path", hook.path());
                return Err(PlanError::invalid(format!("{field}.path"), why));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                let why = "it is not greater than zero";
                return Err(PlanError::invalid(format!("{field}.timeout"), why));
            }
            for (list, part) in [(hook.args(), "args"), (hook.env(), "env")] {
                if list.iter().flatten().any(|text| text.contains('\0')) {
                    let why = "it holds a NUL character";
                    return Err(PlanError::invalid(format!("{field}.{part}"), why));
                }
            }
            let hook = hook.clone();
            Ok(PlacedHook { field, hook })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn taken(hooks: Value) -> Result<(HostHooks, Value), String> {
        let spec = json!({"ociVersion": "1.2.0", "root": {"path": "r"}, "hooks": hooks, "annotations": {"a": "b"}});
        let mut spec: Spec = serde_json::from_value(spec).unwrap();
        let taken = HostHooks::take("c1", Path::new("/bundle"), &mut spec);
        let taken = taken.map_err(|error| error.to_string())?;
        Ok((taken, serde_json::to_value(spec).unwrap()))
    }

    #[test]
    fn each_goes_where_it_runs() {
        let hook = |name: &str| json!([{"path": format!("/bin/{name}")}]);
        let names = [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ];
        let all: serde_json::Map<_, _> =
            names.map(|n| (n.to_owned(), hook(n))).into_iter().collect();
        let (host, guest) = taken(Value::Object(all)).unwrap();
        let fields = |hooks: &[PlacedHook]| {
            hooks
                .iter()
                .map(|h| h.field.clone())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            fields(&host.create),
            "hooks.prestart[0] hooks.createRuntime[0]"
        );
        assert_eq!(fields(&host.poststart), "hooks.poststart[0]");
        assert_eq!(fields(&host.poststop), "hooks.poststop[0]");
        assert_eq!(
            guest["hooks"],
            json!({"createContainer": hook("createContainer"), "startContainer": hook("startContainer")})
        );
        let state: Value = serde_json::from_slice(&host.state("creating", Some(7))).unwrap();
        assert_eq!(
            state,
            json!({"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 7,
                "bundle": "/bundle", "annotations": {"a": "b"}})
        );
    }

    #[rstest]
    #[case(json!({"poststop": [{"path": "/x"}, {"path": "x"}]}), "hooks.poststop[1].path: ")]
    #[case(json!({"createContainer": [{"path": "x"}]}), "hooks.createContainer[0].path: ")]
    #[case(json!({"prestart": [{"path": "/x", "timeout": 0}]}), "hooks.prestart[0].timeout: ")]
    fn bad_ones_are_named(#[case] hooks: Value, #[case] field: &str) {
        let error = taken(hooks).unwrap_err();
        assert!(error.starts_with(field), "{error}");
    }
}
