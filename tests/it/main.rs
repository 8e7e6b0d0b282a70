//! Every integration test, in one binary: the real rolegate in front of real Redis processes, and
//! of a scripted fake for faults that no real server shows.
#![allow(unreachable_pub, reason = "in a test binary everything is")]
#![allow(clippy::disallowed_types, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod admin;
mod architecture;
mod checks;
mod cli;
mod config;
mod docs;
mod failover;
mod faults;
mod hold;
mod lifecycle;
mod limits;
mod names;
mod preconnect;
mod privileges;
mod proxy_protocol;
mod reload;
mod sentinel;
mod soak;
mod support;
mod tls;
mod tls_faults;
mod traffic;
mod trouble;
mod truth;
mod unix;
mod upgrade;
mod workers;
