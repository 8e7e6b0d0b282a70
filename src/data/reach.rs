//! How sessions reach the served backend.

use std::io;

use crate::{
    net::{
        self, Tuning,
        tls::{Connector, Stream},
    },
    topology::Served,
};

/// The same for all sessions of a pool.
#[derive(Clone, Debug)]
pub struct Reach {
    /// How the socket is treated.
    pub tuning: Tuning,
    /// How to shake hands, unless bytes pass as they are.
    pub tls: Option<Connector>,
}

impl Reach {
    /// Connects and shakes hands; the caller sets the deadline.
    pub(super) async fn connect(&self, served: &Served) -> io::Result<Stream> {
        let socket = net::connect(&served.address, &self.tuning).await?;
        match &self.tls {
            None => Ok(Stream::Plain(socket)),
            Some(connector) => connector.connect(&served.host, socket).await,
        }
    }
}
