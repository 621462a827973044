use std::thread;

use containerd_shim_protos::{
    bootstrap_api::{Extension, LogLevel},
    protobuf::well_known_types::any::Any,
};

use super::*;

fn args() -> Args {
    let words = "-namespace default -id c1 -address /a start".split(' ');
    Args::parse(words.map(str::to_owned)).expect("a good command line")
}

fn options() -> Any {
    Any {
        type_url: "runtimeoptions.v1.Options".into(),
        value: b"\x12\x07/a.toml".to_vec(),
        ..Any::default()
    }
}

fn params() -> BootstrapParams {
    BootstrapParams {
        instance_id: "c1".into(),
        namespace: "default".into(),
        containerd_ttrpc_address: "/run/c.ttrpc".into(),
        ..BootstrapParams::default()
    }
}

#[test]
fn options_of_an_old_containerd() {
    let bytes = options().write_to_bytes().expect("encodes");
    let input = decode(&bytes, &args(), false).expect("decodes");
    assert_eq!(input.dialect, Dialect::Text);
    assert_eq!(input.options, Source::File("/a.toml".into()));
    let input = decode(b"", &args(), true).expect("decodes");
    assert_eq!(input.dialect, Dialect::Json);
    assert_eq!(input.options, Source::Default);
}

#[test]
fn parameters_of_a_new_containerd() {
    let mut params = params();
    params.socket_dir = Some("/run/k3s/s".into());
    params.log_level = LogLevel::LOG_LEVEL_DEBUG.into();
    for value in [
        Any {
            type_url: "containerd.io/cri.v1.PodSandboxConfig".into(),
            ..Any::default()
        },
        options(),
    ] {
        params.extensions.push(Extension {
            value: Some(value).into(),
            ..Extension::default()
        });
    }
    let bytes = params.write_to_bytes().expect("encodes");
    let input = decode(&bytes, &args(), true).expect("decodes");
    assert_eq!(
        input,
        Input {
            dialect: Dialect::Protobuf,
            ttrpc_address: Some("/run/c.ttrpc".into()),
            socket_dir: Some("/run/k3s/s".into()),
            debug: true,
            options: Source::File("/a.toml".into()),
        }
    );
}

#[test]
fn parameters_for_somebody_else_are_no_options_either() {
    let mut params = params();
    params.instance_id = "c2".into();
    let bytes = params.write_to_bytes().expect("encodes");
    assert!(decode(&bytes, &args(), false).is_err());
}

#[test]
fn answers() {
    let address = "unix:///s/x";
    let text = |dialect| answer(dialect, address).expect("answers");
    assert_eq!(text(Dialect::Text), b"unix:///s/x");
    let json: serde_json::Value = serde_json::from_slice(&text(Dialect::Json)).expect("JSON");
    assert_eq!(json["version"], 2);
    assert_eq!(json["address"], address);
    assert_eq!(json["protocol"], "ttrpc");
    let result = BootstrapResult::parse_from_bytes(&text(Dialect::Protobuf)).expect("protobuf");
    assert_eq!(result.address, address);
    assert_eq!(result.protocol, "ttrpc");
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    drop(bind(&socket).expect("first"));
    assert!(UnixStream::connect(&socket).is_err());
    let listener = bind(&socket).expect("second");
    assert!(UnixStream::connect(&socket).is_ok());
    let mode = fs::metadata(&socket).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
}

#[test]
fn the_lock_excludes() {
    let directory = tempfile::tempdir().expect("a directory");
    let sockets = directory.path().join("s");
    let held = lock(&sockets).expect("locks");
    let other = thread::spawn({
        let sockets = sockets.clone();
        move || lock(&sockets).map(|_| std::time::Instant::now())
    });
    thread::sleep(std::time::Duration::from_millis(50));
    let released = std::time::Instant::now();
    drop(held);
    let taken = other.join().expect("no panic").expect("locks");
    assert!(taken >= released);
}
