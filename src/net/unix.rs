//! Unix sockets. The data path sees a stream as it sees those of TCP: every call that moves bytes or
//! waits is the same for both.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown},
            net::UnixListener,
        },
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{TcpStream, UnixStream},
    time::sleep,
};

use super::BACKLOG;

/// Before a peer is tried again whose queue of new connections is full.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// The file of a listening socket. It goes when this is dropped, unless another one has taken its
/// place.
#[derive(Debug)]
pub struct SocketFile {
    path: Arc<Path>,
    /// Device and inode.
    identity: (u64, u64),
    stays: AtomicBool,
}

impl SocketFile {
    fn new(path: Arc<Path>) -> io::Result<Self> {
        let identity = identity(&path)?;
        Ok(Self { path, identity, stays: AtomicBool::new(false) })
    }

    /// The one of a socket that another process has opened, which may still listen: it stays.
    pub(super) fn of(socket: &UnixListener) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| io::Error::other("it has no file"))?;
        let file = Self::new(path.into())?;
        file.leave();
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Says who may use it.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }

    /// Makes it the file of this user and group.
    pub fn give(&self, uid: u32, gid: u32) -> io::Result<()> {
        lchown(&self.path, Some(uid), Some(gid))
    }

    /// Leaves the file where it is from now on, for another process that listens behind it.
    pub fn leave(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// Whether the file goes with this.
    pub fn is_own(&self) -> bool {
        !self.stays.load(Ordering::Relaxed)
    }

    /// From now on the file goes with this: no other process listens behind it any more.
    pub fn own(&self) {
        self.stays.store(false, Ordering::Relaxed);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = || identity(&self.path).is_ok_and(|identity| identity == self.identity);
        if !self.stays.load(Ordering::Relaxed) && is_ours() {
            // One that may not be removed is replaced by the next who listens there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Opens a non-blocking listening socket whose file has this mode. A file that nobody listens behind
/// any more is replaced.
pub(super) fn listen(path: &Arc<Path>, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets no more than this from the start, so that nobody slips in.
    let socket = File::from(OwnedFd::from(socket));
    socket.set_permissions(Permissions::from_mode(mode))?;
    let socket = Socket::from(OwnedFd::from(socket));
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        remove_stale(path, &address)?;
        socket.bind(&address)?;
    }
    let file = SocketFile::new(path.clone())?;
    // What the umask took away.
    file.set_mode(mode)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok((OwnedFd::from(socket).into(), file))
}

/// Removes the file if nobody listens behind it.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::other("a file that is no socket is in its place"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue is an answer, too.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "in use: somebody listens there")),
    }
}

/// Connects to who listens there; the caller sets the deadline.
pub(super) async fn connect(path: &Path) -> io::Result<TcpStream> {
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return as_stream(stream),
            // The queue is full, and nothing tells when it is not any more.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                sleep(FULL_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The same socket, for all that asks for no address of it and sets no option of TCP.
pub(super) fn as_stream(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(OwnedFd::from(stream.into_std()?).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as Client;

    use super::*;

    fn place(folder: &tempfile::TempDir) -> Arc<Path> {
        folder.path().join("it.sock").into()
    }

    #[test]
    fn a_file_has_its_mode_is_replaced_when_stale_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(&folder);
        let (listener, file) = listen(&path, 0o666).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        let error = listen(&path, 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        Client::connect(&path).unwrap();

        // As after a kill.
        file.leave();
        drop((listener, file));
        assert!(path.exists());
        let (_listener, file) = listen(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        Client::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_is_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(&folder);
        let (listener, file) = listen(&path, 0o600).unwrap();
        // As another process, which gives up again.
        let next = SocketFile::of(&listener).unwrap();
        assert_eq!(*next.path(), path);
        drop(next);
        assert!(path.exists());
        // And one that takes over.
        let next = SocketFile::of(&listener).unwrap();
        next.own();
        file.leave();
        drop(file);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_and_what_is_anothers_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(&folder);
        fs::write(&path, "text").unwrap();
        let error = listen(&path, 0o600).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        fs::remove_file(&path).unwrap();

        let (_listener, file) = listen(&path, 0o600).unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let (_other, _file) = listen(&path, 0o600).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(&folder);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let _first = connect(&path).await.unwrap();
        let second = connect(&path);
        tokio::pin!(second);
        let early = tokio::time::timeout(FULL_PAUSE * 5, &mut second).await;
        assert!(early.is_err(), "the queue has one place");
        let _accepted = socket.accept().unwrap();
        second.await.unwrap();
    }
}
