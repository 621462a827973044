//! Runtime options: what containerd's configuration or `ctr` says about this runtime.
//!
//! They arrive as a `google.protobuf.Any` of `runtimeoptions.v1.Options`: in every Create, and on the
//! standard input of `start` so that a mistake is reported before a server exists.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::{
    CodedInputStream, Message, rt::WireType, well_known_types::any::Any,
};
use isopod_settings::Settings;

/// Why options were refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options of another runtime.
    #[error(
        "runtime options of type {0:?} are not isopod's: use runtimeoptions.v1.Options \
         (ctr: --runtime-config-path FILE; containerd: options.ConfigPath = \"FILE\")"
    )]
    UnknownType(String),
    /// An option of runc's that means nothing here.
    #[error("runtime options: field {0} of containerd.linux.runc.CreateOptions is not supported")]
    RuncOption(u32),
    /// Bytes that are no such message.
    #[error("runtime options cannot be decoded: {0}")]
    Decode(#[from] containerd_shim_protos::protobuf::Error),
    /// The message's text is no text.
    #[error("runtime options: ConfigBody is not UTF-8")]
    BodyNotText,
    /// What they name is wrong.
    #[error(transparent)]
    Settings(#[from] isopod_settings::Error),
}

/// Where the settings come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// No options: the default file.
    #[default]
    Default,
    /// `ConfigPath`.
    File(PathBuf),
    /// `ConfigBody`: the TOML text itself.
    Text(String),
}

impl Source {
    /// Reads and checks the settings.
    pub fn load(&self) -> Result<Settings, Error> {
        Ok(match self {
            Self::Default => Settings::load(None)?,
            Self::File(path) => Settings::load(Some(path))?,
            Self::Text(text) => Settings::parse(text, Path::new("runtime options"))?,
        })
    }

    /// Decodes an `Any`, as Create carries it.
    pub fn from_any(any: Option<&Any>) -> Result<Self, Error> {
        let Some(any) = any else {
            return Ok(Self::Default);
        };
        // Both registries' prefixes are in use, and none.
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match name {
            "" if any.value.is_empty() => Ok(Self::Default),
            // The second name is containerd's before 1.5.
            "runtimeoptions.v1.Options" | "cri.runtimeoptions.v1.Options" => decode(&any.value),
            "containerd.linux.runc.CreateOptions" => stream_owners(&any.value),
            _ => Err(Error::UnknownType(any.type_url.clone())),
        }
    }

    /// Decodes a serialized `Any`, as `start` reads it; nothing means no options.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Ok(Self::Default);
        }
        Self::from_any(Some(&Any::parse_from_bytes(bytes)?))
    }
}

/// `message Options { string type_url = 1; string config_path = 2; bytes config_body = 3; }`
/// (containerd, api/types/runtimeoptions/v1/api.proto). The type_url describes the body; ours is
/// always TOML.
fn decode(bytes: &[u8]) -> Result<Source, Error> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let (mut path, mut body) = (String::new(), Vec::new());
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            18 => path = input.read_string()?,
            26 => body = input.read_bytes()?,
            other => {
                let wire = WireType::new(other & 7).unwrap_or(WireType::Varint);
                input.skip_field(wire)?;
            }
        }
    }
    if !path.is_empty() {
        return Ok(Source::File(path.into()));
    }
    if !body.is_empty() {
        let text = String::from_utf8(body).map_err(|_| Error::BodyNotText)?;
        return Ok(Source::Text(text));
    }
    Ok(Source::Default)
}

/// For a container with a user namespace, containerd 1.7's client tells every runtime but runc by this
/// message, and by no other, whom the standard streams' pipes shall belong to (`io_uid = 10`,
/// `io_gid = 11`). Here the streams are the guest's own: they belong to the container's root already.
fn stream_owners(bytes: &[u8]) -> Result<Source, Error> {
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag >> 3 {
            10 | 11 => drop(input.read_uint32()?),
            other => return Err(Error::RuncOption(other)),
        }
    }
    Ok(Source::Default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.into(),
            ..Any::default()
        }
    }

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(value.len()).expect("short")];
        bytes.extend_from_slice(value);
        bytes
    }

    #[test]
    fn sources() {
        let both = [field(2, b"/a.toml"), field(3, b"x")].concat();
        let with_type = [field(1, b"io.containerd"), field(3, b"engine = 'qemu'")].concat();
        let with_unknown = [vec![0x48, 7], field(2, b"/a.toml")].concat();
        for (value, expected) in [
            (vec![], Source::Default),
            (field(2, b"/a.toml"), Source::File("/a.toml".into())),
            (both, Source::File("/a.toml".into())),
            (with_type, Source::Text("engine = 'qemu'".into())),
            (with_unknown, Source::File("/a.toml".into())),
        ] {
            for url in [
                "runtimeoptions.v1.Options",
                "types.googleapis.com/runtimeoptions.v1.Options",
                "cri.runtimeoptions.v1.Options",
            ] {
                let found = Source::from_any(Some(&any(url, &value))).expect("decodes");
                assert_eq!(found, expected, "{url} {value:?}");
                let bytes = any(url, &value).write_to_bytes().expect("encodes");
                assert_eq!(Source::from_bytes(&bytes).expect("decodes"), expected);
            }
        }
        assert_eq!(Source::from_any(None).expect("none"), Source::Default);
        assert_eq!(Source::from_bytes(b"").expect("none"), Source::Default);
    }

    #[test]
    fn others_options_are_named() {
        let error = Source::from_any(Some(&any("containerd.runc.v1.Options", b""))).err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("containerd.runc.v1.Options"), "{text}");
    }

    #[test]
    fn who_owns_the_streams_is_no_option_of_ours() {
        let options = |value: &[u8]| {
            Source::from_any(Some(&any("containerd.linux.runc.CreateOptions", value)))
        };
        let owners = [10 << 3, 0xa0, 0x8d, 6, 11 << 3, 0xa0, 0x8d, 6];
        assert_eq!(options(&owners).expect("decodes"), Source::Default);
        let no_pivot_root = [1 << 3, 1];
        let error = options(&no_pivot_root).expect_err("refused");
        assert!(error.to_string().contains("field 1 of"), "{error}");
    }

    #[test]
    fn text_is_parsed_and_a_mistake_is_an_error() {
        assert!(Source::Text("engine = \"qemu\"".into()).load().is_ok());
        assert!(Source::Text("engin = \"qemu\"".into()).load().is_err());
        assert!(
            Source::File("/nonexistent/isopod.toml".into())
                .load()
                .is_err()
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Source::from_bytes(&bytes);
            let _ = decode(&bytes);
            let _ = stream_owners(&bytes);
        }
    }
}
