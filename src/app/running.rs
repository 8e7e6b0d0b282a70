//! What runs, and how a config changes it. The start is a change, too: from nothing.

mod listeners;

use std::{mem, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::listeners::{Accepting, Leaving, RunningListener};
use super::{
    AppError, drain,
    plan::{self, Plan, Socket},
};
use crate::{
    admin::{self, Access, ListenerStatus, Order, Shown},
    config,
    control::monitor::{Monitor, Orders},
    data::{
        gate::{Gate, Total},
        hold::Returns,
        listener,
        spare::Spares,
        worker::Workers,
    },
    metrics::Metrics,
    net::Listening,
    topology::Published,
};

/// How long a pool may take to be served where another process serves it until then.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// How a part of the control plane ended.
#[derive(Debug)]
pub(super) enum End {
    /// Without being asked to; this is its name.
    Lost(String),
    /// As it was asked to.
    Asked,
    /// The listener of this name has no session any more.
    Drained(Arc<str>),
}

/// Everything that a new config can change.
pub(super) struct Running {
    pub(super) base: Base,
    /// What ended, and how.
    pub(super) ends: JoinSet<End>,
    pools: Vec<RunningPool>,
    listeners: Vec<RunningListener>,
    /// The names of those whose sessions end, each as often as it was closed.
    leaving: Vec<Arc<str>>,
    admin: Option<RunningAdmin>,
    shown: watch::Sender<Arc<Shown>>,
    state: Arc<admin::State>,
    /// The number of the next listener.
    next: usize,
}

/// What stays as long as the process.
pub(super) struct Base {
    pub(super) metrics: Arc<Metrics>,
    pub(super) total: Arc<Total>,
    pub(super) workers: Workers,
    pub(super) worker_count: usize,
    pub(super) returns: Returns,
    pub(super) congestion: Option<Arc<str>>,
    pub(super) state_dir: Option<PathBuf>,
}

struct RunningPool {
    config: config::Pool,
    published: Published,
    orders: Orders,
    spares: Arc<Spares>,
}

struct RunningAdmin {
    socket: Socket,
    stop: CancellationToken,
}

impl Running {
    /// Nothing yet.
    pub(super) fn new(
        base: Base,
        draining: CancellationToken,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let (shown, out) = watch::channel(Arc::default());
        let metrics = base.metrics.clone();
        let state = admin::State { started: Instant::now(), metrics, shown: out, draining, orders };
        Self {
            base,
            ends: JoinSet::new(),
            pools: Vec::new(),
            listeners: Vec::new(),
            leaving: Vec::new(),
            admin: None,
            shown,
            state: Arc::new(state),
            next: 0,
        }
    }

    /// The sockets that listen, with the names of their listeners; the admin's has none.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (Option<&str>, &Socket)> {
        let admin = self.admin.iter().map(|admin| (None, &admin.socket));
        let listeners = self.listeners.iter().flat_map(|listener| {
            let sockets = listener.sockets.iter();
            sockets.map(|accepting| (Some(&*listener.config.name), &accepting.socket))
        });
        admin.chain(listeners)
    }

    /// The same for another process, by the keys of the config.
    pub(super) fn named_sockets(&self) -> impl Iterator<Item = (String, &Listening)> {
        self.sockets().map(|(listener, socket)| {
            socket.pass(listener.map_or_else(|| plan::ADMIN.to_owned(), plan::key))
        })
    }

    /// Changes what runs to what the plan says. Nothing of it can be refused any more.
    pub(super) async fn apply(&mut self, plan: Plan) -> Result<(), AppError> {
        let Plan { config, closed, sockets, admin, budget, takes_over } = plan;
        self.base.total.set_max(budget.connections);
        self.base.metrics.set_max_connections(budget.connections);

        let mut old = mem::take(&mut self.pools);
        for pool in &config.pools {
            let known = old.iter().position(|old| old.config.name == pool.name);
            let running = match known {
                Some(at) => self.change_pool(old.swap_remove(at), pool).await,
                None => self.start_pool(pool).await,
            };
            self.pools.push(running);
        }

        if takes_over {
            self.wait_served().await?;
        }
        let mut left = mem::take(&mut self.listeners);
        let known: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| {
                let pool = &self.pools[listener.pool].config.name;
                let stays_closed = closed.contains(&listener.name);
                let at = left.iter().position(|old| {
                    old.is(&listener.name, pool) || stays_closed && old.is_drained(&listener.name)
                })?;
                Some(left.swap_remove(at))
            })
            .collect();
        // Before anybody else accepts at their sockets.
        left.iter().for_each(RunningListener::stop);
        for ((listener, known), sockets) in config.listeners.iter().zip(known).zip(sockets) {
            let running = match known {
                Some(known) => known.change(listener, &self.base, &self.pools),
                None => self.new_listener(listener),
            };
            let running = self.accept(running, sockets).await?;
            self.listeners.push(running);
        }
        for mut gone in left.into_iter().filter(|gone| !gone.is_drained) {
            let is_replaced = self.listeners.iter().any(|now| now.config.name == gone.config.name);
            // Sessions that lead to another pool than the listener does end at once.
            let grace = if is_replaced { Duration::ZERO } else { config.shutdown_timeout };
            self.retire(gone.leave(), Duration::ZERO, config.drain.pace, grace);
        }
        for gone in old {
            gone.spares.stop();
            gone.orders.end().await;
        }
        self.change_admin(admin)?;
        self.show(config.admin.as_ref());
        Ok(())
    }

    /// Changes the pools that there are, and nothing else: for a process that ends.
    pub(super) async fn change_pools(&mut self, config: &config::Config) {
        let pools = mem::take(&mut self.pools);
        for running in pools {
            let new = config.pools.iter().find(|pool| pool.name == running.config.name);
            self.pools.push(match new {
                Some(new) => self.change_pool(running, new).await,
                None => running,
            });
        }
    }

    /// Another process remembers the masters from now on.
    pub(super) async fn leave_state(&self) {
        for pool in &self.pools {
            pool.orders.leave_state().await;
        }
    }

    /// Waits until every pool is served.
    async fn wait_served(&self) -> Result<(), AppError> {
        let deadline = Instant::now() + TAKE_OVER;
        for pool in &self.pools {
            let mut view = pool.published.view.clone();
            let served = view.wait_for(|view| view.verdict.served().is_some());
            if timeout_at(deadline, served).await.is_err() {
                return Err(AppError::NotServed {
                    pool: pool.config.name.clone(),
                    reason: pool.published.status().reason.words.clone(),
                });
            }
        }
        Ok(())
    }

    async fn start_pool(&mut self, pool: &config::Pool) -> RunningPool {
        warn_of_insecure(pool);
        let state_dir = self.base.state_dir.as_deref();
        let (monitor, published, orders) =
            Monitor::new(pool.clone(), state_dir, &self.base.metrics);
        let name = format!("the monitor of pool {}", pool.name);
        self.ends.spawn(async move {
            match monitor.run().await {
                Ok(()) => End::Asked,
                Err(_) => End::Lost(name),
            }
        });
        let (mut view, returns) = (published.view.clone(), self.base.returns.clone());
        self.ends.spawn(async move {
            while view.changed().await.is_ok() {
                returns.wake();
            }
            // Its monitor tells whether that is right.
            End::Asked
        });
        let spares = self.base.spares(pool, &published).await;
        RunningPool { config: pool.clone(), published, orders, spares }
    }

    async fn change_pool(&self, mut old: RunningPool, new: &config::Pool) -> RunningPool {
        if old.config == *new {
            return old;
        }
        if old.config.tls != new.tls {
            warn_of_insecure(new);
        }
        let of_spares = |pool: &config::Pool| {
            let tls = pool.tls.clone();
            (pool.preconnect, pool.connect_timeout, pool.check.patience(), tls)
        };
        if of_spares(&old.config) != of_spares(new) {
            old.spares.stop();
            old.spares = self.base.spares(new, &old.published).await;
        }
        old.orders.reconfigure(new.clone()).await;
        old.config = new.clone();
        old
    }

    /// Accepts nobody yet.
    fn new_listener(&mut self, listener: &config::Listener) -> RunningListener {
        let place = self.next;
        self.next += 1;
        let refusals = self.base.metrics.refusals(&listener.name);
        let total = self.base.total.clone();
        let gate = Arc::new(Gate::new(listener.name.clone(), total, refusals));
        let pool = &self.pools[listener.pool];
        let shared = self.base.shared(listener, pool, place, &gate);
        RunningListener {
            config: listener.clone(),
            pool: pool.config.name.clone(),
            place,
            sockets: Vec::new(),
            shared: watch::Sender::new(Arc::new(shared)),
            gate,
            is_drained: false,
        }
    }

    /// Accepts at these sockets, and no others.
    async fn accept(
        &self,
        mut running: RunningListener,
        sockets: Vec<Socket>,
    ) -> Result<RunningListener, AppError> {
        let mut old = mem::take(&mut running.sockets);
        for mut socket in sockets {
            let known = old.iter().position(|accepting| accepting.socket.is(&socket));
            if let Some(at) = known {
                let mut accepting = old.swap_remove(at);
                accepting.socket.renew(&socket);
                running.sockets.push(accepting);
                continue;
            }
            let (listener, pool) = (&*running.config.name, &*running.pool);
            info!(listener, address = %socket.address, pool, "listening");
            let stop = CancellationToken::new();
            let accepting = socket.take()?;
            let accepting =
                listener::Listener::new(accepting, running.shared.subscribe(), stop.clone());
            self.base.workers.accept(accepting).await;
            running.sockets.push(Accepting { socket, stop });
        }
        old.iter().for_each(|gone| gone.stop.cancel());
        Ok(running)
    }

    /// Takes no new clients on this listener any more, until a reload opens it again, and lets its
    /// sessions end. Tells what is to come.
    pub(super) fn drain(&mut self, name: &str, config: &config::Config) -> String {
        let Some(listener) = self.listeners.iter_mut().find(|one| *one.config.name == *name) else {
            return format!("there is no listener {name} any more");
        };
        if listener.is_drained {
            return format!("listener {name} is drained already; a reload opens it again");
        }
        listener.is_drained = true;
        let leaving = listener.leave();
        let (drain, grace) = (config.drain, config.shutdown_timeout);
        self.retire(leaving, drain.delay, drain.pace, grace);
        self.show(config.admin.as_ref());
        format!(
            "listener {name} closes in {} s, and its sessions end in {} s more at the latest; a reload \
             opens it again",
            drain.delay.as_secs_f64(),
            grace.as_secs_f64()
        )
    }

    /// The listeners that take no clients any more until a reload.
    pub(super) fn drained(&self) -> Vec<Arc<str>> {
        let drained = self.listeners.iter().filter(|listener| listener.is_drained);
        drained.map(|listener| listener.config.name.clone()).collect()
    }

    /// Closes a listener after the delay, and lets its sessions end within `grace` from then.
    fn retire(&mut self, leaving: Leaving, delay: Duration, pace: Duration, grace: Duration) {
        let Leaving { name, sockets, gate, place } = leaving;
        self.leaving.push(name.clone());
        let (workers, returns) = (self.base.workers.clone(), self.base.returns.clone());
        self.ends.spawn(async move {
            sleep(delay).await;
            // Closed when those who accept have stopped.
            sockets.into_iter().for_each(|accepting| accepting.stop.cancel());
            drain::one(&workers, &returns, &gate, place, pace, grace).await;
            End::Drained(name)
        });
    }

    fn change_admin(&mut self, socket: Option<Socket>) -> Result<(), AppError> {
        let old = self.admin.take();
        let Some(mut socket) = socket else {
            if let Some(old) = old {
                old.stop.cancel();
            }
            return Ok(());
        };
        if let Some(old) = old {
            if old.socket.is(&socket) {
                let mut old = old;
                old.socket.renew(&socket);
                self.admin = Some(old);
                return Ok(());
            }
            old.stop.cancel();
        }
        info!(address = %socket.address, "admin listening");
        let accepting = socket.take()?.register()?;
        let stop = CancellationToken::new();
        let (state, stopping) = (self.state.clone(), stop.clone());
        self.ends.spawn(async move {
            admin::run(accepting, state, stopping).await;
            End::Asked
        });
        self.admin = Some(RunningAdmin { socket, stop });
        Ok(())
    }

    /// Lets the admin show what runs now.
    fn show(&self, admin: Option<&config::Admin>) {
        let access = admin.map(|admin| Access::new(admin.token.clone(), admin.bind.is_local()));
        let access = access.unwrap_or_default();
        let listeners = self.listeners.iter().map(|listener| {
            let place = self.pools.iter().position(|pool| pool.config.name == listener.pool);
            let hold = listener.config.hold;
            ListenerStatus {
                name: listener.config.name.clone(),
                pool: place.unwrap_or_default(),
                role: listener.config.role,
                hold: if hold.dry_run { Duration::ZERO } else { hold.timeout },
                addresses: listener.sockets.iter().map(|one| one.socket.address.clone()).collect(),
                is_drained: listener.is_drained,
                metrics: self.base.metrics.listener(&listener.config.name),
            }
        });
        let pools = self.pools.iter().map(|pool| pool.published.clone()).collect();
        self.shown.send_replace(Arc::new(Shown { pools, listeners: listeners.collect(), access }));
    }

    /// Takes note of a part that ended. An error if it was not asked to.
    pub(super) fn note_end(&mut self, end: Result<End, JoinError>) -> Result<(), AppError> {
        match end {
            Ok(End::Asked) => Ok(()),
            Ok(End::Drained(name)) => {
                let at = self.leaving.iter().position(|leaving| *leaving == name);
                at.map(|at| self.leaving.swap_remove(at));
                let is_there = self.listeners.iter().any(|listener| listener.config.name == name);
                if !is_there && !self.leaving.contains(&name) {
                    self.base.metrics.forget_listener(&name);
                }
                info!(listener = &*name, "listener is drained");
                Ok(())
            }
            Ok(End::Lost(name)) => Err(AppError::Ended(name)),
            Err(error) => Err(AppError::Ended(format!("a part of the control plane ({error})"))),
        }
    }

    /// Answers no more requests to the admin.
    pub(super) fn stop_admin(&mut self) {
        if let Some(admin) = self.admin.take() {
            admin.stop.cancel();
        }
    }

    /// Closes the sockets of all listeners, and gives up what waits for their clients.
    pub(super) fn stop_listening(&mut self) {
        self.pools.iter().for_each(|pool| pool.spares.stop());
        for listener in &mut self.listeners {
            listener.stop();
            listener.sockets.clear();
        }
    }
}

fn warn_of_insecure(pool: &config::Pool) {
    if pool.tls.as_ref().is_some_and(|tls| tls.insecure) {
        let advice = "anybody in between may read and change everything; set tls.ca instead";
        warn!(pool = &*pool.name, advice, "certificates of backends are not verified");
    }
}
