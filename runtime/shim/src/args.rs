//! The command line that containerd gives a shim: Go's `flag` package, one or two dashes.

use std::path::PathBuf;

/// What the process shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Print the version and end.
    Version,
    /// Print what this runtime is, as a protobuf `RuntimeInfo`, and end.
    Info,
    /// Start a server, or find the running one of this pod, and print its address.
    Start,
    /// Remove what a killed shim left and print a protobuf `DeleteResponse`.
    Delete,
    /// Be the server.
    Serve,
}

/// The parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// containerd's gRPC socket: part of the pod's socket name, and the base of the events' address.
    pub address: String,
    /// The socket that the server was given; it removes it when it ends.
    pub socket: PathBuf,
    /// The bundle; without it the working directory is one.
    pub bundle: Option<PathBuf>,
    /// Log more.
    pub debug: bool,
}

/// Why a command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A flag that no version of containerd sends.
    #[error("flag provided but not defined: -{0}")]
    UnknownFlag(String),
    /// A flag without its value.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// `-debug=maybe`.
    #[error("invalid boolean value {value:?} for -{flag}")]
    BadBool {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
    },
    /// An action other than start and delete.
    #[error("unknown action {0:?}: start and delete are known")]
    UnknownAction(String),
    /// All actions need it.
    #[error("shim namespace cannot be empty")]
    NoNamespace,
    /// All actions need it.
    #[error("container id cannot be empty")]
    NoId,
}

impl Args {
    /// Parses the arguments without the program's name, in the manner of Go's `flag.Parse`: flags end
    /// at the first word without a dash, or after `--`.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut args = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            socket: PathBuf::new(),
            bundle: None,
            debug: false,
        };
        let (mut version, mut info) = (false, false);
        let mut words = words.into_iter();
        let mut action = None;
        while let Some(word) = words.next() {
            let Some(flag) = flag_of(&word) else {
                action = if word == "--" {
                    words.next()
                } else {
                    Some(word)
                };
                break;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" | "version" => version = boolean(name, inline)?,
                "info" => info = boolean(name, inline)?,
                "debug" => args.debug = boolean(name, inline)?,
                "namespace" | "id" | "address" | "publish-binary" | "socket" | "debug-socket"
                | "bundle" => {
                    let value = inline
                        .or_else(|| words.next())
                        .ok_or_else(|| Error::NoValue(name.to_owned()))?;
                    match name {
                        "namespace" => args.namespace = value,
                        "id" => args.id = value,
                        "address" => args.address = value,
                        "socket" => args.socket = value.into(),
                        "bundle" if !value.is_empty() => args.bundle = Some(value.into()),
                        // Events go to containerd's ttrpc service, not through its publish binary;
                        // there is no debug service.
                        _ => {}
                    }
                }
                _ => return Err(Error::UnknownFlag(name.to_owned())),
            }
        }
        args.action = match action.as_deref() {
            _ if version => Action::Version,
            _ if info => Action::Info,
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            None => Action::Serve,
            Some(other) => return Err(Error::UnknownAction(other.to_owned())),
        };
        if !matches!(args.action, Action::Version | Action::Info) {
            if args.namespace.is_empty() {
                return Err(Error::NoNamespace);
            }
            if args.id.is_empty() {
                return Err(Error::NoId);
            }
        }
        Ok(args)
    }
}

/// The flag in a word, without its dashes; `-` alone and `--` are no flags.
fn flag_of(word: &str) -> Option<&str> {
    let flag = word.strip_prefix('-')?;
    let flag = flag.strip_prefix('-').unwrap_or(flag);
    (!flag.is_empty()).then_some(flag)
}

/// The spellings that Go's `strconv.ParseBool` knows.
fn boolean(flag: &str, value: Option<String>) -> Result<bool, Error> {
    match value.as_deref() {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(Error::BadBool {
            flag: flag.to_owned(),
            value: other.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Error> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_1_6_start() {
        let args = parse(
            "-namespace default -address /run/containerd/containerd.sock \
             -publish-binary /usr/bin/containerd -id c1 -debug start",
        );
        assert_eq!(
            args,
            Ok(Args {
                action: Action::Start,
                namespace: "default".into(),
                id: "c1".into(),
                address: "/run/containerd/containerd.sock".into(),
                socket: PathBuf::new(),
                bundle: None,
                debug: true,
            })
        );
    }

    #[test]
    fn actions() {
        for (line, action) in [
            ("-namespace n -id c start", Action::Start),
            ("-namespace n -id c -bundle /b delete", Action::Delete),
            ("-namespace n -id c", Action::Serve),
            ("--namespace=n --id=c -- start", Action::Start),
            ("-v", Action::Version),
            ("--version", Action::Version),
            ("-info", Action::Info),
            ("-namespace n -v=true start", Action::Version),
        ] {
            assert_eq!(parse(line).map(|args| args.action), Ok(action), "{line}");
        }
    }

    #[test]
    fn flags_end_at_the_action() {
        let args = parse("-namespace n -id c start -debug");
        assert_eq!(args.map(|args| args.debug), Ok(false));
    }

    #[test]
    fn refusals() {
        for (line, error) in [
            ("-id c start", Error::NoNamespace),
            ("-namespace n start", Error::NoId),
            ("-namespace n -id", Error::NoValue("id".into())),
            (
                "-namespace n -id c stop",
                Error::UnknownAction("stop".into()),
            ),
            ("-shiny", Error::UnknownFlag("shiny".into())),
            (
                "-debug=maybe",
                Error::BadBool {
                    flag: "debug".into(),
                    value: "maybe".into(),
                },
            ),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
    }
}
