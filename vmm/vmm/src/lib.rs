//! The walls of the machine monitor, which its program and their tests share.
//!
//! Place in the flow: see `main.rs`. Imports `jail` and `config`; nothing but the program imports it.
#![forbid(unsafe_code)]

pub mod filter;
pub mod walls;
