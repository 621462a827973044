//! Generates the messages and the ttrpc service from `proto/monitor.proto`, without protoc.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=proto/monitor.proto");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("proto")
        .input("proto/monitor.proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()
        .expect("proto/monitor.proto compiles");
    // Generated files begin with inner attributes and inner docs, which `include!` refuses.
    for file in ["monitor.rs", "monitor_ttrpc.rs"] {
        let path = Path::new(&out).join(file);
        let text = fs::read_to_string(&path).expect("generated file is readable");
        let kept: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .collect();
        fs::write(&path, kept.join("\n")).expect("generated file is writable");
    }
}
