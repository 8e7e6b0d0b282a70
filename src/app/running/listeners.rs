//! The listeners that run, and what their sessions share.

use std::{collections::HashMap, mem, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Base, RunningPool};
use crate::{
    app::plan::Socket,
    config,
    data::{
        gate::Gate,
        handshake::{Handshake, Log},
        reach::Reach,
        session::Shared,
        spare::Spares,
    },
    net::{Tuning, tls::Connector},
    topology::Published,
};

pub(super) struct RunningListener {
    pub(super) config: config::Listener,
    pub(super) pool: Arc<str>,
    pub(super) place: usize,
    pub(super) sockets: Vec<Accepting>,
    pub(super) shared: watch::Sender<Arc<Shared>>,
    pub(super) gate: Arc<Gate>,
    pub(super) is_drained: bool,
}

/// A listener that closes.
pub(super) struct Leaving {
    pub(super) name: Arc<str>,
    pub(super) sockets: Vec<Accepting>,
    pub(super) gate: Arc<Gate>,
    pub(super) place: usize,
}

pub(super) struct Accepting {
    pub(super) socket: Socket,
    pub(super) stop: CancellationToken,
}

impl RunningListener {
    /// Whether it goes on as the listener of this name in front of this pool.
    pub(super) fn is(&self, name: &str, pool: &str) -> bool {
        *self.config.name == *name && *self.pool == *pool && !self.is_drained
    }

    /// Whether it is the one of this name, and takes no clients any more.
    pub(super) fn is_drained(&self, name: &str) -> bool {
        *self.config.name == *name && self.is_drained
    }

    /// What of it is to end.
    pub(super) fn leave(&mut self) -> Leaving {
        let sockets = mem::take(&mut self.sockets);
        let (name, gate) = (self.config.name.clone(), self.gate.clone());
        Leaving { name, sockets, gate, place: self.place }
    }

    pub(super) fn stop(&self) {
        self.sockets.iter().for_each(|accepting| accepting.stop.cancel());
    }

    /// The same with this config, for those who come from now on.
    pub(super) fn change(
        mut self,
        new: &config::Listener,
        base: &Base,
        pools: &[RunningPool],
    ) -> Self {
        let shared = base.shared(new, &pools[new.pool], self.place, &self.gate);
        self.shared.send_replace(Arc::new(shared));
        self.config = new.clone();
        self
    }
}

impl Base {
    pub(super) async fn spares(&self, pool: &config::Pool, published: &Published) -> Arc<Spares> {
        let spares = Arc::new(Spares::new(
            pool.preconnect,
            self.worker_count,
            published.view.clone(),
            pool.connect_timeout,
            self.reach(pool),
            self.metrics.preconnected(&pool.name),
        ));
        self.workers.keep(&spares).await;
        spares
    }

    pub(super) fn shared(
        &self,
        listener: &config::Listener,
        pool: &RunningPool,
        place: usize,
        gate: &Arc<Gate>,
    ) -> Shared {
        let RunningPool { config: pool, published, spares, .. } = pool;
        let failures = pool.backends.iter().map(|backend| {
            let failures = self.metrics.connect_failures(&pool.name, &backend.name);
            (backend.name.clone(), failures)
        });
        Shared {
            listener: listener.name.clone(),
            place,
            pool: pool.name.clone(),
            view: published.view.clone(),
            connect_timeout: pool.connect_timeout,
            reach: self.reach(pool),
            handshake: (listener.tls.as_ref())
                .map(|tls| Handshake::new(tls.acceptor.clone(), tls.handshake_timeout)),
            expects_plain: listener.tls.is_none()
                && !pool.tls.as_ref().is_some_and(|tls| tls.passthrough),
            log: Log::new(listener.name.clone()),
            lease_patience: pool.check.lease_patience(),
            spares: spares.clone(),
            gate: gate.clone(),
            admission: listener.admission.clone(),
            proxy: listener.proxy.clone(),
            timeouts: listener.timeouts,
            hold: listener.hold,
            returns: self.returns.clone(),
            hints: published.hints.clone(),
            metrics: self.metrics.listener(&listener.name),
            connect_failures: failures.collect::<HashMap<_, _>>(),
        }
    }

    /// How sessions reach the pool's backends.
    fn reach(&self, pool: &config::Pool) -> Reach {
        let tls = pool.tls.as_ref().filter(|tls| !tls.passthrough);
        let tls = tls.map(|tls| Connector::new(tls.connector.clone(), tls.server_name.clone()));
        let tuning =
            Tuning { patience: pool.check.patience(), congestion: self.congestion.clone() };
        Reach { tuning, tls }
    }
}
