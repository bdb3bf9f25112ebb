//! The way to a registry that is far away: what is sent arrives later, however much it is.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// Pieces on their way, at most, of so many bytes each.
const ON_THE_WAY: usize = 256;
const PIECE: usize = 64 * 1024;

/// A relay; it ends when dropped.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    _ends: oneshot::Sender<()>,
}

impl Relay {
    /// Starts one in front of `to`, with a thread of its own.
    pub fn start(to: SocketAddr, delay: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let (ends, mut ended) = oneshot::channel::<()>();
        thread::spawn(move || {
            runtime.block_on(async {
                let mut connections = JoinSet::new();
                loop {
                    tokio::select! {
                        _ = &mut ended => return,
                        Some(_) = connections.join_next() => {}
                        accepted = listener.accept() => {
                            let Ok((stream, _)) = accepted else { continue };
                            connections.spawn(serve(stream, to, delay));
                        }
                    }
                }
            });
        });
        Ok(Self { address, _ends: ends })
    }
}

async fn serve(here: TcpStream, to: SocketAddr, delay: Duration) {
    // The handshake, which the kernel did at once, takes a way there and back.
    sleep(2 * delay).await;
    let Ok(there) = TcpStream::connect(to).await else {
        return;
    };
    // What is not sent at once is late, and nothing else.
    drop(here.set_nodelay(true));
    drop(there.set_nodelay(true));
    let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
    tokio::join!(
        carry(from_here, to_there, delay),
        carry(from_there, to_here, delay)
    );
}

/// Carries all that comes to the other side, each piece as late.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let reads = async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if sender.send((Instant::now() + delay, piece)).await.is_err() {
                return;
            }
        }
    };
    let writes = async move {
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        // The end is carried too; it fails where the other side has gone already.
        drop(to.shutdown().await);
    };
    tokio::join!(reads, writes);
}
