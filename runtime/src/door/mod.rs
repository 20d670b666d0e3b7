//! Front doors: each turns a protocol's bytes into calls of the broker and the broker's answers into its bytes.
//!
//! A door holds no rule about topics, producers or rights; those are the broker's.

pub mod native;
