//! Plain data that both planes share: names, roles, what a check found, the rules, and the published
//! View.

mod address;
mod admission;
mod check;
mod hint;
mod rule;
mod view;

pub use self::{
    address::Address,
    admission::{Admission, ProxyProtocol, Timeouts},
    check::{Answer, Failure, Role, State},
    hint::{Hint, Hints},
    rule::{Hold, OnUnexplainedHeir, Reason, Rule, VerdictKind},
    view::{
        BackendStatus, LastCheck, Lease, PoolStatus, Published, Revoked, SentinelStatus, Served,
        Verdict, View,
    },
};
