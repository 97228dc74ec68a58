//! The real-pod harness.
