//! Mirrors that break, that are slow, and that are a bit odd: each with a few images of its own.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kagami::domain::answer::MediaType;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::{
    super::{e2e::images, e2e::mirror::image_mirror, payload, roles::REGISTRY},
    dice::Dice,
    peers::{
        faulty::{Action, Behaviour, Faulty, Reply},
        shelf::Shelf,
    },
};

/// Images of each mirror, all different: as many as are asked for data before a fault of theirs is the mirror's.
pub const IMAGES: usize = 8;

/// What the slow mirror takes for most answers at most, for the others, and how many of a thousand those are: one in
/// a hundred takes 400 ms or more.
const FAST: Duration = Duration::from_millis(20);
const SLOW: Duration = Duration::from_millis(400);
const SLOW_OF_THOUSAND: u64 = 15;

/// How often the mirror that pauses does, and for how long.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(500));

/// How long a connection may be idle at the mirror that closes those.
const IDLE: Duration = Duration::from_secs(1);

/// An ImageMirror, and where what stands behind it is.
pub struct Mirror {
    /// Of the ImageMirror.
    pub name: String,
    pub address: SocketAddr,
    /// None where it runs elsewhere.
    peer: Option<Peer>,
}

struct Peer {
    faulty: Faulty,
    shelf: Shelf,
}

/// What may befall a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Its listener and all its connections end, as the kernel ends those of a killed process.
    Killed,
    /// It answers 500, whatever it is asked.
    Errors,
    /// Nothing is answered any more, and no connection comes about.
    BlackHole,
    /// It accepts connections and never says anything.
    Silent,
    /// All is well but data: it sends the head of an answer and nothing of the blob.
    NoData,
}

impl Fault {
    /// Those of a whole mirror.
    pub const WHOLE: [Self; 4] = [Self::Killed, Self::Errors, Self::BlackHole, Self::Silent];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Errors => "500 for everything",
            Self::BlackHole => "black hole",
            Self::Silent => "never answers",
            Self::NoData => "no data of blobs",
        }
    }

    fn behaviour(self, shelf: &Shelf) -> Behaviour {
        match self {
            Self::Killed => Behaviour::Refuse,
            Self::Errors => Behaviour::always(Reply::error(500, "UNKNOWN")),
            Self::BlackHole => Behaviour::BlackHole,
            Self::Silent => Behaviour::Silent,
            Self::NoData => {
                let shelf = shelf.clone();
                Behaviour::answer(move |request| {
                    if request.target.contains("/blobs/") {
                        return Reply::new(200).hanging_body("").into();
                    }
                    shelf.answer(request).into()
                })
            }
        }
    }
}

/// Returns what mirrors run on: one thread, apart from that of the load.
pub fn runtime() -> Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    Ok(builder.worker_threads(1).enable_all().build()?)
}

/// Returns the images below a host as a mirror of them has them.
pub fn shelf_of(host: &str) -> Result<Shelf> {
    let shelf = Shelf::default();
    for number in 0..IMAGES {
        let image = payload::image(number);
        let (repository, tag) = image.split_once(':').context("images have tags")?;
        let content = images::single(MediaType::OciManifest, &format!("{host}/{number}"));
        shelf.put(&format!("{host}/{repository}"), tag, &content);
    }
    Ok(shelf)
}

/// Returns the host whose images the mirror of this name has.
pub fn host_of(name: &str) -> String {
    format!("{name}.example.com")
}

impl Mirror {
    /// Starts a mirror that works.
    pub fn start(runtime: &Runtime, name: &str) -> Result<Self> {
        let shelf = shelf_of(&host_of(name))?;
        let faulty = runtime.block_on(Faulty::start(shelf.behaviour()));
        let address = faulty.address();
        Ok(Self {
            name: name.to_owned(),
            address,
            peer: Some(Peer { faulty, shelf }),
        })
    }

    /// One that somebody else runs.
    pub fn elsewhere(name: &str, address: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            address,
            peer: None,
        }
    }

    /// Starts one whose answers take 400 ms or more now and then.
    pub fn slow(runtime: &Runtime, name: &str, dice: Dice) -> Result<Self> {
        let dice = Arc::new(Mutex::new(dice));
        Self::late(runtime, name, move || {
            let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
            if dice.below(1000) < SLOW_OF_THOUSAND {
                SLOW + dice.within(SLOW / 4)
            } else {
                dice.within(FAST)
            }
        })
    }

    /// Starts one that answers nobody for half a second out of ten.
    pub fn pausing(runtime: &Runtime, name: &str) -> Result<Self> {
        let began = Instant::now();
        let (every, pause) = PAUSES;
        Self::late(runtime, name, move || {
            let nanos = began.elapsed().as_nanos() % every.as_nanos();
            let since = Duration::from_nanos(u64::try_from(nanos).unwrap_or_default());
            pause.saturating_sub(since)
        })
    }

    /// Starts one that closes connections that are idle.
    pub fn closing_idle(runtime: &Runtime, name: &str) -> Result<Self> {
        let mirror = Self::start(runtime, name)?;
        if let Some(peer) = &mirror.peer {
            peer.faulty.close_idle(IDLE);
        }
        Ok(mirror)
    }

    /// Starts one whose answers each come so late.
    fn late(
        runtime: &Runtime,
        name: &str,
        by: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Result<Self> {
        let mirror = Self::start(runtime, name)?;
        mirror.with(runtime, |shelf| {
            Behaviour::answer(move |request| Action::Later(by(), shelf.answer(request)))
        })
    }

    /// Tells somebody the other end of each connection that something is asked over.
    pub fn observed(
        self,
        runtime: &Runtime,
        by: impl Fn(SocketAddr) + Send + Sync + 'static,
    ) -> Result<Self> {
        self.with(runtime, |shelf| {
            Behaviour::answer(move |request| {
                by(request.peer);
                shelf.answer(request).into()
            })
        })
    }

    fn with(mut self, runtime: &Runtime, behaviour: impl FnOnce(Shelf) -> Behaviour) -> Result<Self> {
        let peer = self.peer.as_mut().context("it runs elsewhere")?;
        runtime.block_on(peer.faulty.set(behaviour(peer.shelf.clone())));
        Ok(self)
    }

    /// Lets a fault begin.
    pub async fn fail(&mut self, fault: Fault) {
        if let Some(peer) = &mut self.peer {
            peer.faulty.set(fault.behaviour(&peer.shelf)).await;
        }
    }

    /// Works again, with all its images.
    pub async fn recover(&mut self) {
        if let Some(peer) = &mut self.peer {
            peer.faulty.set(peer.shelf.behaviour()).await;
        }
    }

    /// Returns the host whose images it has.
    pub fn host(&self) -> String {
        host_of(&self.name)
    }

    /// Returns its ImageMirror, with every setting as it is by itself.
    pub fn object(&self) -> Value {
        let registry = format!("{}.{REGISTRY}", self.name);
        let endpoint = format!("http://{}", self.address);
        let none = Value::Object(serde_json::Map::new());
        image_mirror(&self.name, &registry, &[&self.host()], &endpoint, &none)
    }
}
