//! How a monitor is controlled: messages, client and server of `proto/monitor.proto`, and the
//! descriptors that go with them ([`parcel`]).
//!
//! Place in the flow: the sandbox's `kvm` engine is the client, `vmm` the server. Imports no sibling.
#![forbid(unsafe_code)]

pub mod parcel;

/// The messages.
#[allow(warnings, missing_docs, clippy::all)]
pub mod monitor {
    include!(concat!(env!("OUT_DIR"), "/monitor.rs"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protobuf::Message;

    use crate::monitor::{AttachRequest, MetricsResponse, ResizeRequest, SaveResponse};

    /// A message of any bytes is refused, or is one that can be written and read again.
    fn read<M: Message + PartialEq>(bytes: &[u8]) {
        if let Ok(message) = M::parse_from_bytes(bytes) {
            let again = message.write_to_bytes().expect("it was read");
            assert!(M::parse_from_bytes(&again).is_ok_and(|again| again == message));
        }
    }

    proptest! {
        #[test]
        fn messages_of_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read::<AttachRequest>(&bytes);
            read::<ResizeRequest>(&bytes);
            read::<SaveResponse>(&bytes);
            read::<MetricsResponse>(&bytes);
        }

        /// As above, of bytes that are mostly a message.
        #[test]
        fn messages_that_were_changed(
            slot in ".{0,40}",
            parcel: u64,
            at: usize,
            to: u8,
        ) {
            let mut request = AttachRequest::new();
            request.slot = slot;
            request.parcel = parcel;
            let mut bytes = request.write_to_bytes().expect("a message");
            let length = bytes.len();
            if let Some(byte) = bytes.get_mut(at.checked_rem(length).unwrap_or(0)) {
                *byte = to;
            }
            read::<AttachRequest>(&bytes);
        }
    }
}

/// The client and the server side of the `Monitor` service.
#[allow(warnings, missing_docs, clippy::all)]
pub mod monitor_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/monitor_ttrpc.rs"));
}
