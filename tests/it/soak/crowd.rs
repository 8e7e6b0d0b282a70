//! Clients with every habit that clients have, good ones and bad ones. One thread runs all of them.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{PASSWORD, encode};

/// More than any life of a client takes that is served at all.
const LIFE: Duration = Duration::from_secs(60);

/// The size of a large value.
const LARGE: usize = 1 << 20;

/// Clients that come again and again until they are told to stop.
pub struct Crowd {
    stop: CancellationToken,
    lives: Arc<Lives>,
    thread: JoinHandle<()>,
}

/// How the clients fared.
#[derive(Debug, Default)]
pub struct Lives {
    /// They got all that they wanted.
    pub good: AtomicU64,
    /// They were refused, cut, or told of an error.
    pub cut: AtomicU64,
    /// They were sent what is no reply to anything that they had asked.
    pub wrong: Mutex<Vec<String>>,
}

impl Crowd {
    /// So many clients of the first address, of which some go to the second one now and then.
    pub fn start(count: usize, addresses: [SocketAddr; 2]) -> Self {
        let (stop, lives) = (CancellationToken::new(), Arc::<Lives>::default());
        let (stopped, counted) = (stop.clone(), lives.clone());
        let thread = thread::spawn(move || {
            on_one_thread(async {
                let mut clients = JoinSet::new();
                for place in 0..count {
                    let (stop, lives) = (stopped.clone(), counted.clone());
                    clients.spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = live_on(place, addresses, &lives) => {}
                        }
                    });
                }
                clients.join_all().await;
            });
        });
        Self { stop, lives, thread }
    }

    /// Lets all of them go at once, in the middle of whatever they do.
    pub fn stop(self) -> Arc<Lives> {
        self.stop.cancel();
        self.thread.join().unwrap();
        self.lives
    }
}

/// Runs a future, and all that it starts, on the thread that calls this.
pub fn on_one_thread<T>(future: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A connection from one of many addresses of the loopback.
pub async fn connect(place: usize, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let host = u8::try_from(2 + place % 200).unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into())?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn live_on(place: usize, addresses: [SocketAddr; 2], lives: &Lives) {
    loop {
        pause(0, 6000).await;
        let address = addresses[usize::from(fastrand::u8(..) < 25)];
        let lived = timeout(LIFE, live(place, address)).await;
        let fate = match lived {
            Ok(Ok(())) => &lives.good,
            Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => {
                lives.wrong.lock().unwrap().push(error.to_string());
                continue;
            }
            Ok(Err(_)) | Err(_) => &lives.cut,
        };
        fate.fetch_add(1, Ordering::Relaxed);
    }
}

/// One life, from the connection to its end.
async fn live(place: usize, address: SocketAddr) -> io::Result<()> {
    let mut client = connect(place, address).await?;
    let habit = fastrand::u8(..100);
    match habit {
        // Says nothing, and goes in one way or the other.
        0..6 => {
            pause(500, 5000).await;
            if habit < 3 {
                reset(&client)?;
            }
            return Ok(());
        }
        // Speaks another language.
        6..8 => return client.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await,
        // Dies before it is understood.
        8..10 => {
            client.write_all(b"*2\r\n$4\r\nAU").await?;
            return reset(&client);
        }
        _ => {}
    }
    ask(&mut client, &[&[b"AUTH", PASSWORD.as_bytes()]], b"+OK\r\n").await?;
    match habit {
        // Idles, with a word now and then.
        10..55 => {
            for _ in 0..fastrand::u8(1..4) {
                pause(1000, 6000).await;
                ask(&mut client, &[&[b"PING"]], b"+PONG\r\n").await?;
            }
        }
        // Talks without pause.
        55..63 => {
            for _ in 0..20 {
                ask(&mut client, &[&[b"PING"]], b"+PONG\r\n").await?;
            }
        }
        // Does not wait for replies before it asks again.
        63..71 => {
            let words: Vec<_> = (0..100).map(|n| format!("{place}-{n}")).collect();
            let commands: Vec<_> =
                words.iter().map(|word| [b"ECHO".as_slice(), word.as_bytes()]).collect();
            let commands: Vec<_> = commands.iter().map(<[&[u8]; 2]>::as_slice).collect();
            let replies: String =
                words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
            ask(&mut client, &commands, replies.as_bytes()).await?;
        }
        // Listens.
        71..80 => {
            let answer = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n";
            ask(&mut client, &[&[b"SUBSCRIBE", b"news"]], answer).await?;
            let mut news = [0; 512];
            let _ = timeout(Duration::from_secs(fastrand::u64(1..10)), async {
                while client.read(&mut news).await.is_ok_and(|read| read > 0) {}
            })
            .await;
        }
        // Tells the others.
        80..82 => {
            client.write_all(&encode(&[b"PUBLISH", b"news", b"something"])).await?;
            pause(10, 100).await;
        }
        // Waits in a command.
        82..87 => ask(&mut client, &[&[b"BLPOP", b"nothing", b"1"]], b"*-1\r\n").await?,
        // Says that it has said all.
        87..91 => {
            client.write_all(&encode(&[b"PING"])).await?;
            client.shutdown().await?;
            expect(&mut client, b"+PONG\r\n").await?;
            if client.read(&mut [0]).await? > 0 {
                return Err(io::Error::new(ErrorKind::InvalidData, "more than a PONG"));
            }
        }
        // Dies in the middle of a command.
        91..97 => {
            client.write_all(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$100\r\nof it").await?;
            if habit < 94 {
                reset(&client)?;
            }
        }
        // Dies with much under way to it.
        97 => {
            let get = encode(&[b"GET", b"large"]);
            client.write_all(&get.repeat(5)).await?;
            pause(10, 300).await;
        }
        // Dies with much under way from it.
        98 => {
            client.write_all(&set_large()[..LARGE / 2]).await?;
            reset(&client)?;
        }
        // Brings much, and takes it away.
        _ => {
            client.write_all(&set_large()).await?;
            expect(&mut client, b"+OK\r\n").await?;
            let mut reply = format!("${LARGE}\r\n").into_bytes();
            reply.resize(reply.len() + LARGE, b'x');
            reply.extend_from_slice(b"\r\n");
            ask(&mut client, &[&[b"GET", b"large"]], &reply).await?;
        }
    }
    Ok(())
}

fn set_large() -> Vec<u8> {
    encode(&[b"SET", b"large", &vec![b'x'; LARGE]])
}

async fn pause(least: u64, most: u64) {
    sleep(Duration::from_millis(fastrand::u64(least..most))).await;
}

/// Lets the drop that comes send a RST.
fn reset(client: &TcpStream) -> io::Result<()> {
    SockRef::from(client).set_linger(Some(Duration::ZERO))
}

/// Sends commands, and reads exactly these bytes.
async fn ask(client: &mut TcpStream, commands: &[&[&[u8]]], replies: &[u8]) -> io::Result<()> {
    let bytes: Vec<_> = commands.iter().flat_map(|command| encode(command)).collect();
    client.write_all(&bytes).await?;
    expect(client, replies).await
}

/// Reads exactly these bytes. An error reply in their place is an error, anything else is
/// [`ErrorKind::InvalidData`].
async fn expect(client: &mut TcpStream, mut replies: &[u8]) -> io::Result<()> {
    let mut bytes = vec![0; replies.len().min(64 * 1024)];
    while !replies.is_empty() {
        let most = replies.len().min(bytes.len());
        let read = client.read(&mut bytes[..most]).await?;
        let read = &bytes[..read];
        if read.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let same = read.iter().zip(replies).take_while(|(a, b)| a == b).count();
        match read.get(same) {
            None => replies = &replies[same..],
            Some(b'-') => return Err(io::Error::other("an error reply")),
            Some(_) => {
                let read = String::from_utf8_lossy(&read[same..read.len().min(same + 60)]);
                let wanted = String::from_utf8_lossy(&replies[same..replies.len().min(same + 60)]);
                let words = format!("{read:?} instead of {wanted:?}");
                return Err(io::Error::new(ErrorKind::InvalidData, words));
            }
        }
    }
    Ok(())
}
