//! The process's tasks and its end.
//!
//! - Every long-lived task is owned by the one [`Tasks`]; a task that ends early, fails or panics
//!   ends the process with its name and its error.
//! - How far the end has come is a value, [`Shutdown`], that parts get as an argument. Only
//!   [`Tasks::run`] moves it forward in the product; tests hold their own [`Trigger`].
//! - Nothing here knows what the tasks do, and nothing here exits the process.

use std::{
    any::Any,
    collections::BTreeMap,
    error::Error as StdError,
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    signal::unix,
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout_at},
};

type Cause = Box<dyn StdError + Send + Sync>;

/// How far the end of the process has come. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Nothing has asked for the end.
    Running,
    /// Not ready any more, but serving: load balancers and clients move away.
    Draining,
    /// Nothing new is begun; what was begun is finished.
    Stopping,
}

/// Moves the [`Shutdown`]s made with it forward.
#[derive(Debug)]
pub struct Trigger {
    sender: watch::Sender<Stage>,
    reached: Arc<AtomicU8>,
}

/// Tells a part of the process how far the end has come.
///
/// If the [`Trigger`] is gone, the stage stays as it is.
#[derive(Clone, Debug)]
pub struct Shutdown {
    receiver: watch::Receiver<Stage>,
    /// The same stage, for those who ask so often that a lock would cost.
    reached: Arc<AtomicU8>,
}

/// Returns a trigger and the value that follows it, at [`Stage::Running`].
pub fn shutdown() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(Stage::Running);
    let reached = Arc::new(AtomicU8::new(Stage::Running as u8));
    let trigger = Trigger {
        sender,
        reached: reached.clone(),
    };
    (trigger, Shutdown { receiver, reached })
}

impl Trigger {
    /// Moves to `stage`; a stage that has passed already changes nothing.
    pub fn advance(&self, stage: Stage) {
        self.sender.send_if_modified(|now| {
            let later = stage > *now;
            *now = (*now).max(stage);
            self.reached.store(*now as u8, Ordering::Release);
            later
        });
    }
}

impl Shutdown {
    /// Returns the stage reached.
    pub fn stage(&self) -> Stage {
        match self.reached.load(Ordering::Acquire) {
            0 => Stage::Running,
            1 => Stage::Draining,
            _ => Stage::Stopping,
        }
    }

    /// Waits until `stage` is reached or passed. Dropping the future loses nothing.
    pub async fn reached(&mut self, stage: Stage) {
        if self.receiver.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs a future until [`Stage::Stopping`]; then it is dropped and nothing returned. There is no
    /// other stage for it: until then a task's end is a failure of the process.
    pub async fn until_stopping<T>(mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.reached(Stage::Stopping) => None,
            output = future => Some(output),
        }
    }
}

/// What asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: drain first.
    Terminate,
    /// SIGINT: finish what was begun, without draining.
    Interrupt,
}

/// The signals that the operating system sends to this process.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    /// Takes over SIGTERM and SIGINT; from now on they do not end the process by themselves.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(unix::SignalKind::terminate())?,
            interrupt: unix::signal(unix::SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}

/// How long the end may take.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Between SIGTERM and the moment when no new connection is taken.
    pub delay: Duration,
    /// From there on, for all tasks together; what still runs then is dropped.
    pub limit: Duration,
}

/// Why the process ended other than as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task returned without an error while the process was to go on.
    #[error("task {name} ended early")]
    Ended { name: &'static str },
    /// A task returned an error.
    #[error("task {name} failed")]
    Failed {
        name: &'static str,
        #[source]
        source: Cause,
    },
    /// A task panicked.
    #[error("task {name} panicked: {message}")]
    Panicked { name: &'static str, message: String },
    /// A second signal came while tasks were still finishing.
    #[error("ended at once by a second signal, before {} finished", .unfinished.join(", "))]
    Aborted { unfinished: Vec<&'static str> },
    /// Tasks were still running at [`Drain::limit`].
    #[error("{} did not finish in time", .unfinished.join(", "))]
    Late { unfinished: Vec<&'static str> },
}

/// The long-lived tasks of this process. Dropping it ends them.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<Result<(), Cause>>,
    names: Vec<(Id, &'static str)>,
}

impl Tasks {
    /// Starts a task that is to run until [`Stage::Stopping`].
    pub fn spawn<E>(
        &mut self,
        name: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<Cause>,
    {
        let task = self.set.spawn(async { future.await.map_err(Into::into) });
        self.names.push((task.id(), name));
    }

    /// Runs until a signal asks for the end and all tasks have ended, or one ends early.
    ///
    /// SIGTERM drains for `drain.delay` before it stops, SIGINT stops; a second signal drops all
    /// tasks at once, and so does the end of `drain.limit`.
    pub async fn run(
        mut self,
        trigger: &Trigger,
        drain: Drain,
        mut next_signal: impl AsyncFnMut() -> Signal,
    ) -> Result<(), Error> {
        let first = tokio::select! {
            error = self.early_end() => return Err(error),
            signal = next_signal() => signal,
        };
        if first == Signal::Terminate {
            tracing::info!(delay = ?drain.delay, "draining");
            trigger.advance(Stage::Draining);
            let end_of_drain = Instant::now() + drain.delay;
            tokio::select! {
                error = self.early_end() => return Err(error),
                _ = next_signal() => return Err(self.aborted()),
                () = sleep_until(end_of_drain) => {}
            }
        }
        tracing::info!(limit = ?drain.limit, "stopping");
        trigger.advance(Stage::Stopping);
        let limit = Instant::now() + drain.limit;
        tokio::select! {
            ended = timeout_at(limit, self.finish()) => ended.unwrap_or_else(|_| Err(self.late())),
            _ = next_signal() => Err(self.aborted()),
        }
    }

    /// Waits for a task to end, which none should; without tasks it waits for ever.
    async fn early_end(&mut self) -> Error {
        match self.set.join_next_with_id().await {
            Some(ended) => {
                let (name, result) = self.named(ended);
                result.err().unwrap_or(Error::Ended { name })
            }
            None => std::future::pending().await,
        }
    }

    /// Waits for all tasks; returns the first failure after every other task has had its end.
    async fn finish(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        while let Some(ended) = self.set.join_next_with_id().await {
            let (name, result) = self.named(ended);
            tracing::debug!(task = name, "ended");
            outcome = outcome.and(result);
        }
        outcome
    }

    fn named(
        &mut self,
        ended: Result<(Id, Result<(), Cause>), JoinError>,
    ) -> (&'static str, Result<(), Error>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let name = match self.names.iter().position(|(known, _)| *known == id) {
            Some(index) => self.names.swap_remove(index).1,
            None => "unnamed",
        };
        let result = match ended {
            Ok((_, Ok(()))) => Ok(()),
            Ok((_, Err(source))) => Err(Error::Failed { name, source }),
            Err(error) => Err(Error::Panicked {
                name,
                message: panic_message(error),
            }),
        };
        (name, result)
    }

    fn unfinished(&self) -> Vec<&'static str> {
        self.names.iter().map(|(_, name)| *name).collect()
    }

    fn aborted(&self) -> Error {
        Error::Aborted {
            unfinished: self.unfinished(),
        }
    }

    fn late(&self) -> Error {
        Error::Late {
            unfinished: self.unfinished(),
        }
    }
}

/// Waits until a task of one of many owners ends by itself or by a panic. Returns whose it was.
pub async fn first_end<T>(
    owners: &mut BTreeMap<String, T>,
    tasks: impl Fn(&mut T) -> &mut JoinSet<()>,
) -> (String, Result<(), JoinError>) {
    poll_fn(|context| {
        for (name, owner) in owners.iter_mut() {
            if let Poll::Ready(Some(ended)) = tasks(owner).poll_join_next(context) {
                return Poll::Ready((name.clone(), ended));
            }
        }
        Poll::Pending
    })
    .await
}

/// Returns what a task that did not return said: its panic's text, or that it was cancelled.
pub fn panic_message(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => panic_text(&*payload).to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Returns a panic's text.
pub fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a text")
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future::pending};

    use tokio::{sync::mpsc, time::sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DRAIN: Drain = Drain {
        delay: Duration::from_secs(95),
        limit: Duration::from_secs(10),
    };

    /// Runs the tasks, sends the signals at the times given, and returns when it ended and how.
    async fn run(
        tasks: Tasks,
        trigger: Trigger,
        signals: &[(Duration, Signal)],
    ) -> (Duration, Result<(), Error>) {
        let start = Instant::now();
        let mut signals: VecDeque<_> = signals.iter().copied().collect();
        let ended = tasks
            .run(&trigger, DRAIN, async || match signals.front().copied() {
                Some((at, signal)) => {
                    sleep_until(start + at).await;
                    signals.pop_front();
                    signal
                }
                None => pending().await,
            })
            .await;
        (start.elapsed(), ended)
    }

    async fn forever() -> Result<(), io::Error> {
        pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_early_ends_the_process_with_its_name() {
        type Spawn = fn(&mut Tasks);
        let ends: [(&str, Spawn); 3] = [
            ("task prober ended early", |tasks| {
                tasks.spawn("prober", async { Ok::<_, io::Error>(()) });
            }),
            ("task prober failed: lease lost", |tasks| {
                tasks.spawn("prober", async { Err::<(), _>("lease lost") });
            }),
            ("task prober panicked: index 3", |tasks| {
                tasks.spawn("prober", async { panic!("index {}", 3) as Result<(), io::Error> });
            }),
        ];
        for (expected, spawn) in ends {
            for signals in [&[][..], &[(SECOND, Signal::Terminate)]] {
                let (trigger, _) = shutdown();
                let mut tasks = Tasks::default();
                tasks.spawn("server", forever());
                spawn(&mut tasks);
                let (_, ended) = run(tasks, trigger, signals).await;
                assert_eq!(crate::telemetry::chain(&ended.unwrap_err()), expected);
            }
        }
        let (trigger, _) = shutdown();
        let mut tasks = Tasks::default();
        tasks.spawn("late", async {
            sleep(10 * SECOND).await;
            Ok::<_, io::Error>(())
        });
        let (after, ended) = run(tasks, trigger, &[(SECOND, Signal::Terminate)]).await;
        assert_eq!(ended.unwrap_err().to_string(), "task late ended early");
        assert_eq!(after, 10 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn sigterm_drains_before_it_stops_and_sigint_does_not() {
        for (signal, expected) in [
            (
                Signal::Terminate,
                &[
                    (Stage::Running, Duration::ZERO),
                    (Stage::Draining, SECOND),
                    (Stage::Stopping, 96 * SECOND),
                ][..],
            ),
            (
                Signal::Interrupt,
                &[
                    (Stage::Running, Duration::ZERO),
                    (Stage::Draining, SECOND),
                    (Stage::Stopping, SECOND),
                ],
            ),
        ] {
            let start = Instant::now();
            let (trigger, mut shutdown) = shutdown();
            let (sender, mut seen) = mpsc::unbounded_channel();
            let mut tasks = Tasks::default();
            tasks.spawn("watcher", async move {
                for stage in [Stage::Running, Stage::Draining, Stage::Stopping] {
                    shutdown.reached(stage).await;
                    sender.send((stage, start.elapsed())).unwrap();
                }
                sleep(3 * SECOND).await;
                Ok::<_, io::Error>(())
            });
            let (after, ended) = run(tasks, trigger, &[(SECOND, signal)]).await;
            ended.unwrap();
            assert_eq!(after, expected[2].1 + 3 * SECOND);
            for stage in expected {
                assert_eq!(seen.recv().await.as_ref(), Some(stage));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_and_the_limit_name_what_is_unfinished() {
        for (second, expected) in [
            (
                2,
                "ended at once by a second signal, before server, prober finished",
            ),
            (
                97,
                "ended at once by a second signal, before server, prober finished",
            ),
            (200, "server, prober did not finish in time"),
        ] {
            let (trigger, _) = shutdown();
            let mut tasks = Tasks::default();
            tasks.spawn("server", forever());
            tasks.spawn("prober", forever());
            let signals = [(SECOND, Signal::Terminate), (second * SECOND, Signal::Interrupt)];
            let (after, ended) = run(tasks, trigger, &signals).await;
            assert_eq!(ended.unwrap_err().to_string(), expected);
            assert_eq!(after, (second * SECOND).min(106 * SECOND));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stages_only_move_forward_and_stay_without_a_trigger() {
        let (trigger, mut shutdown) = shutdown();
        trigger.advance(Stage::Stopping);
        trigger.advance(Stage::Draining);
        assert_eq!(shutdown.stage(), Stage::Stopping);
        assert!(shutdown.clone().until_stopping(forever()).await.is_none());
        drop(trigger);
        shutdown.reached(Stage::Draining).await;

        let (trigger, mut shutdown) = super::shutdown();
        drop(trigger);
        let output = shutdown.clone().until_stopping(sleep(SECOND)).await;
        assert!(output.is_some());
        assert!(
            tokio::time::timeout(SECOND, shutdown.reached(Stage::Draining))
                .await
                .is_err()
        );
    }
}
