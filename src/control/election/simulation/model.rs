//! A group of Redis nodes, as far as a check can tell it from a real one. Time is in milliseconds.

use std::fmt;

use crate::topology::{Answer, Role};

pub(super) type Ms = u64;

/// One address, and the process behind it.
#[derive(Clone)]
pub(super) struct Node {
    /// Names the process.
    pub(super) run: u64,
    pub(super) up: bool,
    /// Stopped: connections stay, nothing answers.
    pub(super) frozen: bool,
    /// No packet between it and the proxy arrives.
    pub(super) cut: bool,
    /// Every other packet between it and the proxy is lost.
    pub(super) flaky: bool,
    /// No packet between it and the other nodes or the Sentinels arrives.
    pub(super) isolated: bool,
    pub(super) loading: Ms,
    pub(super) busy: Ms,
    /// Whom it replicates; a master nobody.
    pub(super) follows: Option<usize>,
    /// The same in its config file, which holds after a restart.
    config: Option<usize>,
    pub(super) replid: u64,
    pub(super) replid2: Option<u64>,
    /// Every replid that stood for its data while it was a master.
    pub(super) ids: Vec<u64>,
    backlog: bool,
    pub(super) link: Link,
    /// A link whose other end is silent ends then.
    link_ends: Option<Ms>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down,
    /// A full sync, which ends then.
    Syncing(Ms),
    Up,
}

/// What a restarted process still has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data {
    Nothing,
    /// A dump with the lineage in it.
    Rdb,
    /// The data without the lineage.
    Aof,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { up, frozen, cut, isolated, follows, replid, replid2, link, .. } = self;
        let flags =
            [(!up, "dead "), (*frozen, "frozen "), (*cut, "cut "), (*isolated, "isolated ")];
        flags.iter().filter(|(is, _)| *is).try_for_each(|(_, word)| f.write_str(word))?;
        match follows {
            None => write!(f, "m")?,
            Some(master) => write!(f, "s of {master} {link:?}")?,
        }
        write!(f, " r{} {replid}", self.run)?;
        replid2.map_or(Ok(()), |id| write!(f, "<{id}"))
    }
}

pub(super) struct Group {
    pub(super) nodes: Vec<Node>,
    last_id: u64,
}

impl Group {
    pub(super) fn new(size: usize) -> Self {
        let node = |place: usize| Node {
            run: 1 + place as u64,
            up: true,
            frozen: false,
            cut: false,
            flaky: false,
            isolated: false,
            loading: 0,
            busy: 0,
            follows: (place > 0).then_some(0),
            config: (place > 0).then_some(0),
            replid: 100,
            replid2: None,
            ids: vec![100],
            backlog: true,
            link: if place > 0 { Link::Up } else { Link::Down },
            link_ends: None,
        };
        Self { nodes: (0..size).map(node).collect(), last_id: 100 }
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn places(&self) -> std::ops::Range<usize> {
        0..self.nodes.len()
    }

    /// Whether the Sentinels or an operator can make it do something.
    pub(super) fn obeys(&self, place: usize, now: Ms) -> bool {
        let node = &self.nodes[place];
        node.up && !node.frozen && !node.isolated && node.busy <= now && node.loading <= now
    }

    /// Whether the proxy's checks get what it has to say.
    pub(super) fn is_visible(&self, place: usize, now: Ms) -> bool {
        let node = &self.nodes[place];
        let silent = node.frozen || node.cut || node.flaky;
        node.up && !silent && node.busy <= now && node.loading <= now
    }

    pub(super) fn is_master(&self, place: usize) -> bool {
        self.nodes[place].follows.is_none()
    }

    /// REPLICAOF NO ONE.
    pub(super) fn promote(&mut self, place: usize, rewrites: bool) {
        let id = self.id();
        let node = &mut self.nodes[place];
        if node.follows.take().is_some() {
            node.replid2 = Some(node.replid);
            node.replid = id;
            node.ids = vec![id];
            node.link = Link::Down;
        }
        if rewrites {
            node.config = None;
        }
    }

    /// REPLICAOF.
    pub(super) fn follow(&mut self, place: usize, master: usize, rewrites: bool) {
        let node = &mut self.nodes[place];
        if node.follows != Some(master) && place != master {
            node.follows = Some(master);
            node.link = Link::Down;
        }
        if rewrites {
            node.config = Some(master);
        }
    }

    /// The FAILOVER command on its master.
    pub(super) fn switch(&mut self, heir: usize) {
        if let Some(master) = self.nodes[heir].follows
            && self.is_master(master)
        {
            self.promote(heir, true);
            self.follow(master, heir, true);
        }
    }

    pub(super) fn restart(&mut self, place: usize, data: Data, loading: Ms) {
        let (run, id) = (self.id(), self.id());
        let node = &mut self.nodes[place];
        let was_master = node.follows.is_none();
        *node = Node {
            run,
            up: true,
            frozen: false,
            follows: node.config,
            link: Link::Down,
            loading,
            busy: 0,
            ..node.clone()
        };
        let old = std::mem::replace(&mut node.replid, id);
        node.replid2 = None;
        node.backlog = false;
        if matches!(data, Data::Rdb) {
            node.backlog = true;
            match node.follows {
                None => node.replid2 = Some(old),
                Some(_) => node.replid = old,
            }
        }
        if node.follows.is_none() {
            // A replica whose config says master starts with data that is some master's.
            node.ids = if was_master { node.ids.clone() } else { Vec::new() };
            node.ids.push(node.replid);
        }
    }

    /// A master that nobody followed for long drops its backlog, and its lineage with it.
    pub(super) fn forget_lineage(&mut self, place: usize) {
        let followed =
            self.nodes.iter().any(|n| n.up && n.follows == Some(place) && n.link != Link::Down);
        if self.is_master(place) && !followed {
            self.renew(place);
            self.nodes[place].backlog = false;
        }
    }

    fn renew(&mut self, place: usize) {
        let id = self.id();
        let node = &mut self.nodes[place];
        (node.replid, node.replid2) = (id, None);
        node.ids.push(id);
    }

    /// What a node's own timer does.
    pub(super) fn tick(&mut self, place: usize, now: Ms, rng: &mut fastrand::Rng) {
        let node = &self.nodes[place];
        let Some(master) = node.follows.filter(|_| node.up && !node.frozen) else {
            return;
        };
        let (own, other) = (node.clone(), self.nodes[master].clone());
        let silent = other.frozen || other.isolated || own.isolated;
        let feeds = other.follows.is_none() || other.link == Link::Up;
        let node = &mut self.nodes[place];
        match own.link {
            Link::Up if !other.up || other.replid != own.replid => node.link = Link::Down,
            Link::Up if silent => {
                let ends = *node.link_ends.get_or_insert_with(|| now + rng.u64(500..20_000));
                if now >= ends {
                    node.link = Link::Down;
                }
            }
            Link::Up => node.link_ends = None,
            _ if silent || !other.up || other.loading > now || !feeds => node.link = Link::Down,
            Link::Down => {
                node.link_ends = None;
                let known = own.replid == other.replid || other.replid2 == Some(own.replid);
                // What it wrote after the promotion is in the way of a partial sync.
                if known && (!own.ids.contains(&own.replid) || rng.bool()) {
                    self.sync(place, master, true);
                } else {
                    let time = rng.u64(50..1500);
                    self.nodes[place].link = Link::Syncing(now + time);
                    self.nodes[place].loading = now + time;
                    if rng.bool() {
                        self.nodes[place].loading = 0;
                    }
                    if !other.backlog {
                        self.renew(master);
                        self.nodes[master].backlog = true;
                    }
                }
            }
            Link::Syncing(end) if now >= end => self.sync(place, master, false),
            Link::Syncing(_) => {}
        }
    }

    fn sync(&mut self, place: usize, master: usize, partial: bool) {
        let replid = self.nodes[master].replid;
        let node = &mut self.nodes[place];
        if node.replid != replid {
            node.replid2 = partial.then_some(node.replid);
        }
        node.replid = replid;
        node.link = Link::Up;
        node.backlog = true;
        node.ids.clear();
    }

    /// Whether one master's data goes on in the other.
    pub(super) fn succeeds(&self, child: usize, parent: usize) -> bool {
        let (heir, old) = (&self.nodes[child], &self.nodes[parent]);
        heir.replid2.is_some_and(|id| id == old.replid || old.ids.contains(&id))
            && !heir.ids.contains(&heir.replid2.unwrap_or_default())
    }

    pub(super) fn is_fed(&self, place: usize, master: usize) -> bool {
        let node = &self.nodes[place];
        node.follows.is_some()
            && node.link == Link::Up
            && node.replid == self.nodes[master].replid
            && place != master
    }

    pub(super) fn answer(&self, place: usize) -> Answer {
        let node = &self.nodes[place];
        let is_master = node.follows.is_none();
        Answer {
            address: ([127, 0, 0, 1], 6379).into(),
            role: if is_master { Role::Master } else { Role::Replica },
            run_id: format!("r{}", node.run),
            replid: format!("{}", node.replid),
            replid2: node.replid2.map(|id| id.to_string()),
            offset: Some(1000),
            link_up: (!is_master).then_some(node.link == Link::Up),
        }
    }
}
