//! rolegate: one TCP address that always leads to the master of a Redis or Valkey replication
//! group.
//!
//! A tour for newcomers, in the order in which to read:
//!
//! * [`topology`]: the words as plain data: roles, rules, the View, leases, hints.
//! * [`control`]: the control plane. Its probes ask each backend who it is, [`control::health`]
//!   folds the answers into a state, [`control::election`] decides who is the true master (with what
//!   the Sentinels say, and what is remembered), and [`control::monitor`], one task a pool,
//!   publishes the View.
//! * [`data`]: the data plane. Each [`data::worker`] is a thread with listeners that accept and sessions,
//!   each of which reads the View, connects, and relays bytes until its lease is revoked.
//!   [`data::hold`] keeps those who wait for a master.
//! * [`admin`]: metrics, health, status and explanations over HTTP.
//! * [`config`]: from YAML to a checked configuration, every error at once.
//! * [`app`]: what starts and stops in which order.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod data;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod remote;
pub mod topology;
