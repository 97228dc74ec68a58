//! A response without an end, line by line.

use std::pin::Pin;

use hyper::body::{Body, Incoming};

use super::ClientError;

/// The longest line. An event with an autopsy has some tens of KiB.
const LINE_BYTES_MAX: usize = 4 << 20;

/// The lines of a live stream.
#[derive(Debug)]
pub struct ResponseLines {
    body: Incoming,
    buffer: Vec<u8>,
    /// How much of the buffer has no line's end.
    searched: usize,
}

impl ResponseLines {
    pub(super) fn new(body: Incoming) -> ResponseLines {
        ResponseLines { body, buffer: Vec::new(), searched: 0 }
    }

    /// The next line that is not empty. None: the stream has ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let invalid = |reason: String| ClientError::InvalidResponse(reason);
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                line.pop();
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(invalid(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
            }
            let frame = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            let Some(frame) = frame else { return Ok(None) };
            if let Ok(data) = frame.map_err(|error| invalid(error.to_string()))?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
