//! The status of a gRPC call: a code and a message.

use std::fmt;

use hyper::StatusCode;
use hyper::header::HeaderMap;
use percent_encoding::percent_decode;
use podopsy_model::text::escape;

/// A status code of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcCode(u8);

impl GrpcCode {
    pub const OK: Self = Self(0);
    pub const UNKNOWN: Self = Self(2);
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    pub const NOT_FOUND: Self = Self(5);
    pub const PERMISSION_DENIED: Self = Self(7);
    pub const OUT_OF_RANGE: Self = Self(11);
    pub const UNIMPLEMENTED: Self = Self(12);
    pub const INTERNAL: Self = Self(13);
    pub const UNAVAILABLE: Self = Self(14);
    pub const UNAUTHENTICATED: Self = Self(16);

    const NAMES: [&str; 17] = [
        "ok",
        "cancelled",
        "unknown",
        "invalid argument",
        "deadline exceeded",
        "not found",
        "already exists",
        "permission denied",
        "resource exhausted",
        "failed precondition",
        "aborted",
        "out of range",
        "unimplemented",
        "internal",
        "unavailable",
        "data loss",
        "unauthenticated",
    ];

    /// Codes that gRPC does not define are UNKNOWN.
    fn parse(value: &[u8]) -> Self {
        let code = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        code.filter(|code| usize::from(*code) < Self::NAMES.len()).map_or(Self::UNKNOWN, Self)
    }

    /// The code for a response that has no gRPC status: gRPC's http-grpc-status-mapping.md.
    pub(super) fn from_http(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::INTERNAL,
            401 => Self::UNAUTHENTICATED,
            403 => Self::PERMISSION_DENIED,
            404 => Self::UNIMPLEMENTED,
            429 | 502..=504 => Self::UNAVAILABLE,
            _ => Self::UNKNOWN,
        }
    }
}

impl fmt::Display for GrpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.get(usize::from(self.0)).unwrap_or(&"unknown"))
    }
}

/// The server's status, or this client's verdict on a response that breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {}", escape(message))]
pub struct GrpcStatus {
    pub code: GrpcCode,
    /// Not escaped; `Display` escapes it.
    pub message: String,
}

impl GrpcStatus {
    pub(super) fn new(code: GrpcCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn protocol(message: &str) -> Self {
        Self::new(GrpcCode::INTERNAL, format!("protocol error: {message}"))
    }

    /// From trailers, or from the headers of a response without a body ("Trailers-Only").
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let code = GrpcCode::parse(headers.get("grpc-status")?.as_bytes());
        let message = headers.get("grpc-message").map_or(&[][..], |value| value.as_bytes());
        Some(Self::new(code, percent_decode(message).decode_utf8_lossy()))
    }
}
