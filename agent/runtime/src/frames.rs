//! Frames over the reader's socket: a length of four bytes, then a value. Both sides wait without a thread.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::question::{Answer, CallError, ConnectionStatus, Question};

/// The largest question: an id has 64 characters.
pub const QUESTION_MAX: usize = 64 << 10;
/// The largest answer: what a response of CRI may have.
pub const ANSWER_MAX: usize = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    /// Chosen by the agent.
    pub id: u64,
    pub question: Question,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Answered {
    /// The id of the question.
    pub id: u64,
    pub answer: Result<Answer, CallError>,
    /// The connection after the answer.
    pub status: ConnectionStatus,
}

/// A value as a frame. The error is its length if that is more than `max`.
pub fn encode(value: &impl Serialize, max: usize) -> Result<Vec<u8>, usize> {
    let mut frame = postcard::to_extend(value, vec![0; 4]).map_err(|_| usize::MAX)?;
    let len = frame.len() - 4;
    let head = u32::try_from(len).ok().filter(|_| len <= max).ok_or(len)?;
    frame[..4].copy_from_slice(&head.to_le_bytes());
    Ok(frame)
}

/// Receives a value. None: the other end is closed.
pub async fn receive<T: DeserializeOwned>(
    socket: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    if socket.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut head[1..]).await?;
    let len = u32::from_le_bytes(head) as usize;
    if len > max {
        let text = format!("a frame of {len} bytes exceeds the limit of {max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = Vec::new();
    // Grows with what arrives: the length is a claim of the other side.
    socket.take(len as u64).read_to_end(&mut body).await?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let value = postcard::from_bytes(&body);
    value.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(frame: &[u8], max: usize) -> io::Result<Option<Asked>> {
        receive(&mut &frame[..], max).await
    }

    #[tokio::test]
    async fn a_question_that_is_not_in_the_list_is_refused() {
        let asked = Asked { id: 7, question: Question::Container { id: "c".into() } };
        let mut frame = encode(&asked, QUESTION_MAX).unwrap();
        let got = received(&frame, QUESTION_MAX).await.unwrap().unwrap();
        assert_eq!((got.id, got.question), (7, asked.question));
        // The number of the question follows the length and the id.
        frame[5] = 100;
        let refused = received(&frame, QUESTION_MAX).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(received(&[], QUESTION_MAX).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_false_length_costs_no_memory_and_a_short_frame_is_an_error() {
        for frame in [&u32::MAX.to_le_bytes()[..], &[9, 0, 0, 0, 1], &[1, 0], &[1, 1, 0, 0]] {
            assert!(received(frame, QUESTION_MAX).await.is_err(), "{frame:?}");
        }
        let frame = encode(&Asked { id: 1, question: Question::Connect }, QUESTION_MAX).unwrap();
        let error = received(&frame, 1).await.unwrap_err();
        assert_eq!(error.to_string(), "a frame of 2 bytes exceeds the limit of 1 bytes");
    }

    #[test]
    fn a_frame_over_the_bound_is_not_made() {
        let asked = Asked { id: 1, question: Question::Sandbox { id: "x".repeat(100) } };
        assert_eq!(encode(&asked, 50), Err(103));
    }
}
