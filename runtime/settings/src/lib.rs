//! The one configuration file, as typed values.
//!
//! Place in the flow: the shim and the command line load it once; `sandbox` plans from it.
//! Imports no sibling.
#![forbid(unsafe_code)]

/// Everything an operator can configure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {}
