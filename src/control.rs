//! The control plane: finds out which backend is the master. Nothing here touches client bytes.

mod council;
pub mod election;
mod evidence;
pub mod health;
mod member;
pub mod memory;
pub mod monitor;
mod name;
mod pace;
mod probe;
mod reply;
mod route;
mod secured;
mod sentinel;
pub mod survey;
mod wire;
