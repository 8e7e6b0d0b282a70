//! Takes out of the exposition what a new config has no more. Handles that are still kept count on,
//! unseen.

use super::{CloseReason, Metrics, Refusal};
use crate::topology::{Failure, Hint, Role, Rule};

impl Metrics {
    /// Shows nothing any more of a backend.
    pub fn forget_backend(&self, pool: &str, backend: &str) {
        let labels = [pool, backend];
        let gauges = [&self.backend_up, &self.pool_master];
        gauges.iter().for_each(|family| drop(family.remove_label_values(&labels)));
        for role in Role::ALL {
            let _ = self.backend_role.remove_label_values(&[pool, backend, role.as_str()]);
        }
        let _ = self.check_duration.remove_label_values(&labels);
        let _ = self.connect_failures.remove_label_values(&labels);
        for failure in Failure::ALL {
            let _ = self.check_failures.remove_label_values(&[pool, backend, failure.as_str()]);
        }
    }

    /// Shows nothing any more of a Sentinel.
    pub fn forget_sentinel(&self, pool: &str, sentinel: &str) {
        let _ = self.sentinel_up.remove_label_values(&[pool, sentinel]);
        let _ = self.sentinel_agree.remove_label_values(&[pool]);
    }

    /// Shows nothing any more of a pool, but for its backends and Sentinels.
    pub fn forget_pool(&self, pool: &str) {
        let labels = [pool];
        let _ = self.pool_master_changes.remove_label_values(&labels);
        let _ = self.pool_conflict.remove_label_values(&labels);
        let _ = self.preconnected.remove_label_values(&labels);
        let _ = self.conflict_seconds.remove_label_values(&labels);
        let _ = self.without_master_seconds.remove_label_values(&labels);
        let _ = self.failover_duration.remove_label_values(&labels);
        let _ = self.lineage_refusals.remove_label_values(&labels);
        for rule in Rule::ALL {
            let labels = [pool, rule.kind().as_str(), rule.as_str()];
            let _ = self.pool_verdict.remove_label_values(&labels);
        }
        for hint in Hint::ALL {
            let _ = self.hints.remove_label_values(&[pool, hint.as_str()]);
        }
    }

    /// Shows nothing any more of a listener.
    pub fn forget_listener(&self, listener: &str) {
        let labels = [listener];
        for gauge in [&self.sessions, &self.held] {
            let _ = gauge.remove_label_values(&labels);
        }
        for counter in
            [&self.sessions_total, &self.accept_errors, &self.held_total, &self.hold_timeouts]
        {
            let _ = counter.remove_label_values(&labels);
        }
        self.tallies().remove(listener);
        for direction in ["in", "out"] {
            let _ = self.bytes.remove_label_values(&[listener, direction]);
        }
        for reason in CloseReason::ALL {
            let _ = self.closed.remove_label_values(&[listener, reason.as_str()]);
        }
        for refusal in Refusal::ALL {
            let _ = self.refused.remove_label_values(&[listener, refusal.as_str()]);
        }
    }
}
