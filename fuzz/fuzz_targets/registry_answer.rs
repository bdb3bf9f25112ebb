//! Whatever bytes a registry sends, over a real connection: nothing panics, everything ends at the
//! deadline, and `Exists` is said of nothing but what was asked for.

#![no_main]

use std::{cell::OnceCell, time::Duration};

use kagami::{
    certificates, clock,
    domain::answer::{Answer, Blob},
    registry::{Client, Endpoint},
};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::watch,
    time::Instant,
};

/// The digest of the manifest in the seeds.
const ASKED: &str = "sha256:4be792c682a11bdf4b43e45d1b8317e358c909682109fac8915fe08737ad517d";

/// How long a call may take. Nobody hangs here but by what the bytes say, such as a length that
/// never comes: the connection is closed then.
const DEADLINE: Duration = Duration::from_secs(5);

struct World {
    runtime: Runtime,
    /// What every connection is answered with.
    answer: watch::Sender<Vec<u8>>,
    url: String,
    /// Given so that no client reads the system's authorities, which takes its time.
    authority: Vec<u8>,
}

impl World {
    fn new() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (answer, answers) = watch::channel(Vec::new());
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answers.borrow().clone();
                tokio::spawn(serve(stream, answer));
            }
        });
        let issued = certificates::issue(&[], clock::now(), Duration::from_secs(60)).expect("a certificate");
        Self {
            runtime,
            answer,
            url,
            authority: issued.authority.into_bytes(),
        }
    }
}

/// Reads one request's head and answers with the bytes as they are.
async fn serve(mut stream: TcpStream, answer: Vec<u8>) {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => head.extend_from_slice(&buffer[..length]),
        }
    }
    // The client may have had enough already.
    drop(stream.write_all(&answer).await);
    drop(stream.shutdown().await);
}

thread_local! {
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

fuzz_target!(|input: (u8, &[u8])| {
    let (call, answer) = input;
    WORLD.with(|world| {
        let world = world.get_or_init(World::new);
        world.answer.send_replace(answer.to_vec());
        world.runtime.block_on(ask(&world.url, &world.authority, call));
    });
});

/// Makes one call; its bits choose which. A client of its own for each, because one that was told to
/// wait asks nobody for a while.
async fn ask(url: &str, authority: &[u8], call: u8) {
    let endpoint = Endpoint {
        url: url.to_owned(),
        ca_bundle: Some(authority.to_vec()),
        trust: kagami::domain::mirror::Trust::default(),
        credentials: None,
    };
    let client = Client::new(&endpoint).expect("the endpoint is a URL");
    let deadline = Instant::now() + DEADLINE;
    let asked = if call & 1 == 0 { "1.27" } else { ASKED };
    let answer = match (call >> 1) & 3 {
        0 => client.head("library/nginx", asked, deadline).await,
        1 => client.get("library/nginx", asked, deadline).await,
        2 => {
            let _ = client.ping(deadline).await;
            return;
        }
        _ => {
            // One that is asked for as a whole, and one by its beginning.
            let blob = Blob {
                digest: ASKED.parse().expect("a digest"),
                size: if call & 1 == 0 { 1000 } else { 2000 },
            };
            let _ = client.beginning("library/nginx", &blob, 1024, deadline).await;
            return;
        }
    };
    if let Answer::Exists(manifest) = answer
        && asked == ASKED
    {
        assert_eq!(
            &manifest.digest.to_string(),
            ASKED,
            "another digest than asked for exists"
        );
    }
}
