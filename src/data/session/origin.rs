//! Where a client comes from, when a load balancer is in between.

use tokio::time::timeout_at;

use super::Session;
use crate::{
    metrics::{CloseReason, Refusal},
    net::{
        proxy::{self, Fault},
        tls::Stream,
    },
};

impl Session {
    /// Whether the client begins with a PROXY header.
    pub(in crate::data) fn has_to_tell_origin(&self) -> bool {
        self.account.shared.proxy.is_some()
    }

    /// Takes the PROXY header; the client's address is the one that it names from then on. `None` if there
    /// is none to be had in time, which resets the client.
    pub(in crate::data) async fn learn_origin(mut self) -> Option<Self> {
        let (Some(rules), Stream::Plain(socket)) = (&self.account.shared.proxy, &mut self.client)
        else {
            return Some(self);
        };
        let deadline = self.account.opened + rules.timeout;
        let refusal = match timeout_at(deadline, proxy::read(socket)).await {
            Ok(Ok(source)) => {
                if let Some(source) = source {
                    self.account.peer = source.into();
                }
                return Some(self);
            }
            // One that connects to see whether that works, such as a load balancer.
            Ok(Err(Fault::Closed)) => return self.end(CloseReason::ClientClosed),
            Ok(Err(Fault::Broken)) => return self.end(CloseReason::ClientReset),
            Ok(Err(Fault::Missing)) => Refusal::ProxyMissing,
            Ok(Err(Fault::Malformed)) => Refusal::ProxyMalformed,
            Ok(Err(Fault::TooLong)) => Refusal::ProxyTooLong,
            Err(_) => Refusal::ProxyTimeout,
        };
        self.refuse(refusal);
        None
    }

    /// Counts a client that left by itself.
    fn end(self, reason: CloseReason) -> Option<Self> {
        let mut account = self.account;
        account.begin();
        account.close(reason);
        None
    }
}
