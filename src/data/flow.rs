//! One direction of a session: from one socket to the other, by copying, or by splice(2) where that
//! costs less.
//!
//! Every worker thread has one read buffer for all its sessions; a flow keeps bytes of its own only
//! while the receiver takes no more, and reads nothing new meanwhile.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::pipe::Pipe;
use crate::net::{self, tls::Stream};

/// What one read takes at the most, and so what a flow keeps at the most.
const BUFFER: usize = 64 * 1024;

/// What may move in one direction before the other sessions of the worker have their turn.
const TURN: u64 = 256 * 1024;

/// So much that comes without a word from the other side is bulk. Of a value of about twice the size
/// splice(2) costs less than copying; of half the size it costs more.
const BULK: u32 = 512 * 1024;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// One end of a session.
pub(super) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The socket, if what goes over it is not encrypted by us.
    fn bare(&self) -> Option<&TcpStream>;

    /// The socket in any case.
    fn socket(&self) -> Option<&TcpStream>;

    /// Takes over what has already come, as much as the socket may hold.
    fn take_arrived(&mut self, into: &mut Vec<u8>);

    /// Closes with RST.
    fn reset(self);
}

impl Side for TcpStream {
    fn bare(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn take_arrived(&mut self, into: &mut Vec<u8>) {
        let start = into.len();
        into.resize(start + usize::try_from(net::unread(self)).unwrap_or(0), 0);
        let read = net::read_now(self, &mut into[start..]);
        into.truncate(start + read);
    }

    fn reset(self) {
        net::reset(self);
    }
}

impl Side for Stream {
    fn bare(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        self.socket()
    }

    fn take_arrived(&mut self, into: &mut Vec<u8>) {
        // What came before an error counts.
        let _ = self.take_arrived(into);
    }

    fn reset(self) {
        self.reset();
    }
}

/// What is under way in one direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Read and not written yet: the receiver is full.
    kept: Option<Box<Kept>>,
    /// Bytes that came since the other side sent any; more than [`BULK`] count as that.
    run: u32,
    /// This run of bytes is bulk, or the one before was.
    is_bulk: bool,
    /// The sender's FIN has come, and everything before it was written.
    has_ended: bool,
}

/// What the receiver has not taken yet.
#[derive(Debug, Default)]
struct Kept {
    pipe: Option<Pipe>,
    /// After what is in the pipe.
    bytes: Vec<u8>,
    /// So many of them are written.
    written: usize,
}

/// Which end of a flow broke.
pub(super) enum Broken {
    Sender,
    Receiver,
    /// What was looked at is not to be passed on.
    Refused,
}

impl Flow {
    /// Moves what can be moved now, and adds it to `moved`. Ready when the sender has ended, or when
    /// `moved` says that the turn is over; not to be polled after an error. What is copied is shown
    /// to `look`, which may refuse it.
    pub(super) fn poll<F: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        moved: &mut u64,
        look: impl Fn(&[u8]) -> bool,
    ) -> Poll<Result<(), Broken>> {
        while !self.has_ended && *moved < TURN {
            if ready!(self.poll_kept(cx, to)).is_err() {
                return Poll::Ready(Err(Broken::Receiver));
            }
            let read = match (from.bare(), to.bare()) {
                (Some(from), Some(to)) if self.is_bulk => self.poll_splice(cx, from, to),
                _ => self.poll_copy(cx, from, to, &look),
            };
            match ready!(read)? {
                Some(0) => self.has_ended = true,
                Some(read) => {
                    *moved += read;
                    self.run = u32::try_from(read)
                        .map_or(BULK, |read| self.run.saturating_add(read))
                        .min(BULK);
                    self.is_bulk |= self.run == BULK;
                }
                None => self.is_bulk = false,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The sender's FIN has come, and everything before it was written.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Nothing waits for the receiver.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_none()
    }

    /// The other side has sent something: what comes next is another run.
    pub(super) fn turn_around(&mut self) {
        if self.run > 0 {
            self.is_bulk = self.run == BULK;
            self.run = 0;
        }
    }

    /// Takes over what has already come from a sender, as much as its socket may hold.
    pub(super) fn salvage(&mut self, from: &mut impl Side) -> u64 {
        let mut arrived = Vec::new();
        from.take_arrived(&mut arrived);
        let salvaged = arrived.len() as u64;
        if salvaged > 0 {
            self.kept.get_or_insert_default().bytes.append(&mut arrived);
        }
        salvaged
    }

    /// Writes what is kept; gives its memory back when it is all written.
    pub(super) fn poll_kept(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut impl Side,
    ) -> Poll<io::Result<()>> {
        let Some(kept) = &mut self.kept else {
            return Poll::Ready(Ok(()));
        };
        let written = ready!(kept.poll_write(cx, to));
        self.kept = None;
        Poll::Ready(written)
    }

    /// Reads once and passes on what the receiver takes. Tells how much was read: 0 at the sender's
    /// end. The receiver must have taken all that came before.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        look: impl Fn(&[u8]) -> bool,
    ) -> Poll<Result<Option<u64>, Broken>> {
        READ.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            if ready!(Pin::new(from).poll_read(cx, &mut read)).is_err() {
                return Poll::Ready(Err(Broken::Sender));
            }
            let bytes = read.filled();
            if !look(bytes) {
                return Poll::Ready(Err(Broken::Refused));
            }
            let mut written = 0;
            while written < bytes.len() {
                match write(cx, to, &bytes[written..]) {
                    Poll::Ready(Ok(n)) => written += n,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Receiver)),
                    Poll::Pending => {
                        let bytes = bytes[written..].to_vec();
                        self.kept = Some(Box::new(Kept { bytes, ..Kept::default() }));
                        return Poll::Ready(Ok(Some(read.filled().len() as u64)));
                    }
                }
            }
            match Pin::new(to).poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Receiver)),
                // TLS still has some of it.
                Poll::Pending => self.kept = Some(Box::default()),
            }
            Poll::Ready(Ok(Some(bytes.len() as u64)))
        })
    }

    /// The same by splice(2). `None` where that is not possible now.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<Result<Option<u64>, Broken>> {
        loop {
            if ready!(from.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Err(Broken::Sender));
            }
            let Some(mut pipe) = Pipe::take() else {
                return Poll::Ready(Ok(None));
            };
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Ok(read) => {
                    let mut kept = Kept { pipe: Some(pipe), ..Kept::default() };
                    match kept.poll_drain(cx, to) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Receiver)),
                        Poll::Pending => self.kept = Some(Box::new(kept)),
                    }
                    return Poll::Ready(Ok(Some(read)));
                }
                // The pipe is empty, so it is the socket that has no more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => pipe.give_back(),
                Err(error) if Pipe::is_unfit(&error) => return Poll::Ready(Ok(None)),
                Err(_) => return Poll::Ready(Err(Broken::Sender)),
            }
        }
    }
}

impl Kept {
    /// Ready when all is written, or the receiver broke.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut impl Side) -> Poll<io::Result<()>> {
        if let Some(to) = to.bare() {
            ready!(self.poll_drain(cx, to))?;
        }
        while self.written < self.bytes.len() {
            self.written += ready!(write(cx, to, &self.bytes[self.written..]))?;
        }
        Pin::new(to).poll_flush(cx)
    }

    /// The same of what is in the pipe.
    fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        while let Some(pipe) = self.pipe.as_mut().filter(|pipe| !pipe.is_empty()) {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || pipe.drain(to)) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                _ => {}
            }
        }
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
        Poll::Ready(Ok(()))
    }
}

fn write(cx: &mut Context<'_>, to: &mut impl Side, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        result => Poll::Ready(result),
    }
}
