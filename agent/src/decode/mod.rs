//! see design
