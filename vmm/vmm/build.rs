//! Relocations of the program in packed form (`DT_RELR`): unpacked they are 280 KiB that every monitor has
//! read once, and has in its memory from then on. Needs binutils 2.38 or LLD 15, and glibc 2.36.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
