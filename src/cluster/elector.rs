//! The leader lease: one companion works, the others wait.
//!
//! Own code over the plain Lease API: what matters here is the moment up to which a leader may
//! write, which libraries keep to themselves. That moment counts from before a renewal was sent,
//! by a monotonic clock, so a process that was paused knows at once.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::request::bounded;
use crate::{
    api::{LEADER_LEASE, v1alpha1::micro_time},
    clock,
    domain::lease::{Candidate, DURATION, RENEW_DEADLINE, RETRY, Record, may_act},
    telemetry::{Reminder, chain},
};

/// Until when this process leads, as others see it.
#[derive(Clone, Debug)]
pub struct Held(watch::Receiver<Option<Instant>>);

impl Held {
    /// Whether this process may write now.
    pub fn may_write(&self) -> bool {
        self.0
            .borrow()
            .is_some_and(|renewed| may_act(Duration::ZERO, renewed.elapsed()))
    }

    /// Returns what a test renews.
    #[cfg(test)]
    pub(crate) const fn of(renewed: watch::Receiver<Option<Instant>>) -> Self {
        Self(renewed)
    }

    /// Waits until this process may not write any more.
    async fn run_out(&self) {
        while self.may_write() {
            let renewed = *self.0.borrow();
            sleep_until(renewed.map_or_else(Instant::now, |renewed| renewed + RENEW_DEADLINE)).await;
        }
    }
}

/// A candidate for the lead.
#[derive(Debug)]
pub struct Elector {
    leases: Api<Lease>,
    /// The API server's address, for people.
    server: String,
    identity: String,
    candidate: Candidate,
    started: Instant,
    renewed: watch::Sender<Option<Instant>>,
    /// When the API server last answered.
    reached: watch::Sender<Option<Instant>>,
    /// The lease as this process wrote it last.
    own: Option<Lease>,
}

impl Elector {
    /// Returns a candidate; `identity` must be another one for each process. `server` is where the API server
    /// is, for people.
    pub fn new(
        client: Client,
        server: String,
        namespace: &str,
        identity: String,
        reached: watch::Sender<Option<Instant>>,
    ) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            server,
            identity,
            candidate: Candidate::default(),
            started: Instant::now(),
            renewed: watch::Sender::new(None),
            reached,
            own: None,
        }
    }

    pub fn held(&self) -> Held {
        Held(self.renewed.subscribe())
    }

    /// Waits until this process leads.
    pub async fn acquire(&mut self) {
        let mut failures = Reminder::default();
        loop {
            match self.try_take().await {
                Ok(leads) => {
                    if failures.ended() {
                        tracing::info!(server = self.server, "the API server answers");
                    }
                    if leads {
                        tracing::info!(identity = self.identity, "leading");
                        return;
                    }
                }
                Err(error) => self.log(&mut failures, "the API server does not give the lease", &error),
            }
            sleep(RETRY).await;
        }
    }

    /// Renews the lease until it is lost.
    pub async fn hold(&mut self) {
        let held = self.held();
        tokio::select! {
            biased;
            () = held.run_out() => {
                tracing::warn!("the lease was not renewed for {RENEW_DEADLINE:?}; stepping down");
            }
            () = self.renewals() => {
                tracing::warn!("another companion took the lease; stepping down");
            }
        }
        self.own = None;
        self.renewed.send_replace(None);
    }

    /// Renews the lease until somebody else has it.
    async fn renewals(&mut self) {
        let mut failures = Reminder::default();
        loop {
            sleep(RETRY).await;
            match self.renew().await {
                Ok(true) => drop(failures.ended()),
                Ok(false) => return,
                Err(error) => self.log(&mut failures, "cannot renew the lease", &error),
            }
        }
    }

    /// Says whom this process asked and what came of it, unless that was said not long ago.
    fn log(&self, failures: &mut Reminder, what: &str, error: &kube::Error) {
        let error = chain(error);
        if failures.failed(&error, std::time::Instant::now()) {
            let (server, lease) = (self.server.as_str(), LEADER_LEASE);
            tracing::warn!(server, lease, error, "{what}; trying again");
        }
    }

    /// Gives the lease back, so that others need not wait.
    pub async fn release(&mut self) {
        self.renewed.send_replace(None);
        let Some(lease) = self.own.take() else { return };
        let mut given = self.give_back(lease).await;
        if given.as_ref().is_err_and(is_conflict) {
            // A renewal that was under way a moment ago may have arrived.
            given = match self.read_own().await {
                Ok(Some(lease)) => self.give_back(lease).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
        }
        if let Err(error) = given {
            tracing::debug!(%error, "cannot give the lease back");
        }
    }

    async fn give_back(&self, mut lease: Lease) -> kube::Result<()> {
        lease.spec.get_or_insert_default().holder_identity = None;
        self.replace(&lease).await.map(drop)
    }

    async fn try_take(&mut self) -> kube::Result<bool> {
        let asked_at = Instant::now();
        let Some(mut lease) = self.answered(self.leases.get_opt(LEADER_LEASE)).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(LEADER_LEASE.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(0)),
            };
            let parameters = PostParams::default();
            let created = self.answered(self.leases.create(&parameters, &lease)).await;
            return self.took(created, asked_at);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let record = Record {
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            duration: seconds(spec.lease_duration_seconds).unwrap_or(DURATION),
        };
        if !self.candidate.may_take(&record, self.started.elapsed()) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(spec.lease_transitions.unwrap_or_default().saturating_add(1)));
        let asked_at = Instant::now();
        let replaced = self.replace(&lease).await;
        self.took(replaced, asked_at)
    }

    async fn renew(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.own.clone() else {
            return Ok(false);
        };
        lease.spec.get_or_insert_default().renew_time = Some(micro_time(clock::now()));
        let asked_at = Instant::now();
        let replaced = self.replace(&lease).await;
        if self.took(replaced, asked_at)? {
            return Ok(true);
        }
        // A renewal that timed out may have arrived all the same.
        self.own = self.read_own().await?;
        Ok(self.own.is_some())
    }

    /// Returns the lease as the API server has it, if this process holds it.
    async fn read_own(&self) -> kube::Result<Option<Lease>> {
        let lease = self.answered(self.leases.get_opt(LEADER_LEASE)).await?;
        Ok(lease.filter(|lease| {
            let spec = lease.spec.as_ref();
            spec.and_then(|spec| spec.holder_identity.as_ref()) == Some(&self.identity)
        }))
    }

    /// Notes what became of a write: `false` if somebody else was faster.
    fn took(&mut self, written: kube::Result<Lease>, asked_at: Instant) -> kube::Result<bool> {
        match written {
            Ok(lease) => {
                self.own = Some(lease);
                self.renewed.send_replace(Some(asked_at));
                Ok(true)
            }
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = micro_time(clock::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn replace(&self, lease: &Lease) -> kube::Result<Lease> {
        let parameters = PostParams::default();
        self.answered(self.leases.replace(LEADER_LEASE, &parameters, lease))
            .await
    }

    /// Bounds a request, and notes that the API server answered.
    async fn answered<T>(&self, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        let answer = bounded(request).await;
        if matches!(answer, Ok(_) | Err(kube::Error::Api(_))) {
            self.reached.send_replace(Some(Instant::now()));
        }
        answer
    }
}

/// Whether what was to be replaced is there already, or not as it was read.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn seconds(seconds: Option<i32>) -> Option<Duration> {
    Some(Duration::from_secs(u64::try_from(seconds?).ok()?))
}

#[cfg(test)]
mod tests {
    use tracing::instrument::WithSubscriber as _;

    use super::*;
    use crate::telemetry::{Format, Settings, examples::Lines, subscriber};

    /// Nobody answers for a minute, in which it is tried some thirty times.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_said_once() {
        let lines = Lines::default();
        let writer = lines.clone();
        let settings = Settings {
            format: Format::Human,
            filter: "info,kube_client=off".to_owned(),
            colour: false,
        };
        let log = subscriber(&settings, move || writer.clone()).unwrap();
        let server = "http://127.0.0.1:1/".to_owned();
        let client = Client::try_from(kube::Config::new(server.parse().unwrap())).unwrap();
        let mut elector = Elector::new(
            client,
            server,
            "kagami-system",
            "companion-a".to_owned(),
            watch::Sender::new(None),
        );
        let minute = tokio::time::timeout(Duration::from_mins(1), elector.acquire());
        assert!(minute.with_subscriber(log).await.is_err());
        let text = lines.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in [
            "the API server does not give the lease; trying again",
            "http://127.0.0.1:1/",
            "kagami-companion",
            "refused",
        ] {
            assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
        }
    }
}
