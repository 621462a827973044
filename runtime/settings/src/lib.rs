//! The one configuration file, as typed values.
//!
//! Place in the flow: the shim and the command line load it once; `sandbox` plans from it.
//! Imports no sibling.
#![forbid(unsafe_code)]

mod annotation;
mod check;
mod key;
mod load;
mod values;

pub use annotation::{ANNOTATION_PREFIX, Annotation};
pub use load::{DEFAULT_PATH, Error};
pub use values::{
    Accelerator, Annotations, Debug, EngineChoice, Fs, Jail, LogLevel, Paths, Qemu, Settings,
    Timeouts, Vm,
};
