//! Lines of bounded length.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// A line without its end.
#[derive(Debug, PartialEq)]
pub enum Line {
    Text(Vec<u8>),
    /// It was longer than the bound, and was skipped.
    TooLong,
}

/// Splits a stream into lines.
pub struct Lines<R> {
    stream: BufReader<R>,
    bytes_max: usize,
    line: Vec<u8>,
    is_too_long: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(stream: R, bytes_max: usize) -> Lines<R> {
        Lines { stream: BufReader::new(stream), bytes_max, line: Vec::new(), is_too_long: false }
    }

    /// The next line. None: the stream has ended; a line without an end is not one. Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let read = self.stream.fill_buf().await?;
            if read.is_empty() {
                return Ok(None);
            }
            let end = read.iter().position(|&byte| byte == b'\n');
            let part = &read[..end.unwrap_or(read.len())];
            self.is_too_long |= self.line.len() + part.len() > self.bytes_max;
            if self.is_too_long {
                self.line = Vec::new();
            } else {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.stream.consume(used);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                let is_too_long = std::mem::take(&mut self.is_too_long);
                return Ok(Some(if is_too_long { Line::TooLong } else { Line::Text(line) }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_line_is_skipped_and_the_next_one_is_read() {
        let input = [b"one\n".as_slice(), &[b'x'; 100_000], b"\ntwo\n\nrest"].concat();
        let mut lines = Lines::new(&input[..], 5);
        let text = |text: &str| Some(Line::Text(text.into()));
        assert_eq!(lines.next().await.unwrap(), text("one"));
        assert_eq!(lines.next().await.unwrap(), Some(Line::TooLong));
        assert_eq!(lines.next().await.unwrap(), text("two"));
        assert_eq!(lines.next().await.unwrap(), text(""));
        assert_eq!(lines.next().await.unwrap(), None);
    }
}
