//! The control plane: finds out which backend is the master. Nothing here touches client bytes.

pub mod election;
pub mod health;
pub mod monitor;
pub mod probe;
