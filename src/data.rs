//! The data plane: moves bytes. It never looks at a reply, never decides, never resolves a name.

mod flow;
pub mod gate;
pub mod handshake;
pub mod hold;
pub mod listener;
mod pipe;
pub mod reach;
mod relay;
pub mod session;
pub mod spare;
pub mod worker;
