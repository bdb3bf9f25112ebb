//! A connection to a mirror that is held open for nothing but to notice its end ([`crate::registry::Held`]).
//!
//! Who ends it may be the mirror that dies, or a server that closes what was silent for long. The second is learned:
//! the connection then says something now and then, or, where that would be too often, is opened anew after growing
//! pauses.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::registry::{Client, Held};

/// How long a connection is silent at most: common load balancers close, or forget, it after a minute.
const SILENCE: Duration = Duration::from_secs(50);

/// The shortest silence that is worth keeping a connection open for.
const SHORTEST_SILENCE: Duration = Duration::from_secs(3);

/// After how many silences of one length a longer one is tried.
const PATIENCE: u32 = 20;

/// How long opening a connection, or saying something over it, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The pause before a connection is opened anew that could not be kept, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// One mirror's tripwire.
#[derive(Debug)]
pub(super) struct Tripwire {
    client: Client,
    state: State,
    lives: Lives,
    /// How long the connection that ended had been silent, until it is known why it ended.
    unexplained: Option<Duration>,
}

#[derive(Debug)]
enum State {
    /// There is none, and none is wanted: the mirror is away.
    Slack,
    /// There is none before this time.
    Pausing(Instant),
    /// A task opens one.
    Opening(JoinSet<Option<Held>>),
    Taut {
        held: Held,
        spoke_at: Instant,
    },
    /// A task says something over it.
    Speaking(JoinSet<Option<Held>>),
}

/// What is known of how long connections are kept open that say nothing.
#[derive(Debug, PartialEq, Eq)]
struct Lives {
    silence: Duration,
    /// How many silences in a row were borne.
    borne: u32,
    pause: Duration,
}

impl Tripwire {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            state: State::Slack,
            lives: Lives {
                silence: SILENCE,
                borne: 0,
                pause: FIRST_PAUSE,
            },
            unexplained: None,
        }
    }

    /// Takes in that a ping was answered well, or not: whether there is something to hold on to.
    pub(super) fn pinged(&mut self, well: bool) {
        let unexplained = self.unexplained.take();
        if !well {
            self.state = State::Slack;
            return;
        }
        // It lives, so it just closes what is silent.
        let pause = unexplained.map_or(Duration::ZERO, |silent| self.lives.ended(silent));
        if matches!(self.state, State::Slack) {
            self.state = State::Pausing(Instant::now() + pause);
        }
    }

    /// Waits until a connection ends by itself. Whoever gives up waiting may wait again.
    pub(super) async fn tripped(&mut self) {
        loop {
            match &mut self.state {
                State::Slack => std::future::pending().await,
                State::Pausing(until) => {
                    sleep_until(*until).await;
                    let client = self.client.clone();
                    let opening = async move { client.hold(Instant::now() + TIMEOUT).await };
                    self.state = State::Opening(task(opening));
                }
                State::Opening(opening) => {
                    let held = end(opening).await;
                    self.state = match held {
                        Some(held) => taut(held),
                        // Pings find out why.
                        None => State::Pausing(Instant::now() + self.lives.refused()),
                    };
                }
                State::Taut { held, spoke_at } => {
                    let spoke_at = *spoke_at;
                    tokio::select! {
                        () = held.ended() => {
                            self.unexplained = Some(spoke_at.elapsed());
                            self.state = State::Slack;
                            return;
                        }
                        () = sleep_until(spoke_at + self.lives.silence) => {}
                    }
                    if let State::Taut { mut held, .. } = std::mem::replace(&mut self.state, State::Slack) {
                        let speaking = async move {
                            let goes_on = held.refresh(Instant::now() + TIMEOUT).await;
                            goes_on.then_some(held)
                        };
                        self.state = State::Speaking(task(speaking));
                    }
                }
                State::Speaking(speaking) => {
                    let Some(held) = end(speaking).await else {
                        self.unexplained = Some(self.lives.silence);
                        self.state = State::Slack;
                        return;
                    };
                    self.lives.bore();
                    self.state = taut(held);
                }
            }
        }
    }
}

fn task(call: impl Future<Output = Option<Held>> + Send + 'static) -> JoinSet<Option<Held>> {
    let mut task = JoinSet::new();
    task.spawn(call);
    task
}

/// Waits for the end of the one task. A panic in it leaves no connection.
async fn end(task: &mut JoinSet<Option<Held>>) -> Option<Held> {
    task.join_next().await.and_then(Result::ok).flatten()
}

fn taut(held: Held) -> State {
    State::Taut {
        held,
        spoke_at: Instant::now(),
    }
}

impl Lives {
    /// Takes in that a silence of the present length was borne.
    fn bore(&mut self) {
        self.pause = FIRST_PAUSE;
        self.borne += 1;
        if self.borne == PATIENCE {
            self.borne = 0;
            self.silence = (self.silence * 3 / 2).min(SILENCE);
        }
    }

    /// Takes in that a connection was closed after a silence. Returns how long to wait with another one.
    fn ended(&mut self, silent: Duration) -> Duration {
        self.borne = 0;
        let bearable = silent * 3 / 4;
        if bearable < SHORTEST_SILENCE {
            return self.refused();
        }
        self.silence = bearable.min(self.silence);
        Duration::ZERO
    }

    /// Takes in that no connection could be kept. Returns how long to wait with another one.
    fn refused(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives() -> Lives {
        Lives {
            silence: SILENCE,
            borne: 0,
            pause: FIRST_PAUSE,
        }
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_closes_what_is_silent_is_spoken_to_in_time() {
        let mut lives = lives();
        assert_eq!(lives.ended(seconds(20)), Duration::ZERO);
        assert_eq!(lives.silence, seconds(15));
        // A longer silence is tried when this one has been borne for long.
        for _ in 0..PATIENCE {
            assert_eq!(lives.silence, seconds(15));
            lives.bore();
        }
        assert_eq!(lives.silence, Duration::from_millis(22_500));
        assert_eq!(lives.ended(seconds(20)), Duration::ZERO);
        assert_eq!(lives.silence, seconds(15));
        for _ in 0..10 * PATIENCE {
            lives.bore();
        }
        assert_eq!(lives.silence, SILENCE);
    }

    #[test]
    fn who_keeps_nothing_open_is_left_alone_for_longer_and_longer() {
        let mut lives = lives();
        let pauses: Vec<_> = (0..8).map(|_| lives.ended(seconds(1)).as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(lives.silence, SILENCE);
        lives.bore();
        assert_eq!(lives.refused(), FIRST_PAUSE);
    }
}
