//! Reviews that come at their times, for mirrors side by side: each with the time of its answer, and whether that sends
//! the Pod to the mirror.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{task::JoinSet, time::sleep_until};

use super::super::client::{Connection, Target};

/// Connections of each lane at most: a review that waits holds up every eighth one behind it. Fewer where reviews are
/// rare, for a connection on which nothing is asked is closed.
const CONNECTIONS: u32 = 8;

/// How long a connection is used: Kagami ends those that are ten minutes old.
const USED: Duration = Duration::from_mins(5);

/// What only images that are rewritten bring into a patch.
const REPLACED: &[u8] = b"\"replace\"";

/// The reason of images that are kept upstream by a suspicion, as the audit log is told of them.
const SUSPECTED: &[u8] = b"MirrorSuspected";

/// The reviews for one mirror.
#[derive(Clone, Debug)]
pub struct Lane {
    pub target: Target,
    /// When the first one comes, and how long after it the next.
    pub first: Duration,
    pub every: Duration,
}

impl Lane {
    fn connections(&self) -> u32 {
        let each_second = Duration::from_secs(1).div_duration_f64(self.every);
        if each_second < f64::from(CONNECTIONS) {
            1
        } else {
            CONNECTIONS
        }
    }
}

/// A review that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When the answer was here.
    pub at: Instant,
    /// Whether it has the image rewritten.
    pub rewritten: bool,
    /// Whether it says that the mirror is suspected.
    pub suspected: bool,
}

/// Sends all reviews of a time, and returns those of each lane in the order of their answers.
pub fn send(lanes: &[Lane], start: Instant, length: Duration) -> Result<Vec<Vec<Answered>>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for (number, lane) in lanes.iter().enumerate() {
            let lane = Arc::new(lane.clone());
            for first in 0..lane.connections() {
                let lane = Arc::clone(&lane);
                tasks.spawn(async move {
                    let sent = over_one(&lane, first, start, length).await;
                    sent.map(|answered| (number, answered))
                });
            }
        }
        let mut all = vec![Vec::new(); lanes.len()];
        while let Some(ended) = tasks.join_next().await {
            let (number, answered) = ended??;
            all[number].extend(answered);
        }
        for answered in &mut all {
            answered.sort_by_key(|answered| answered.at);
        }
        Ok(all)
    })
}

/// Sends every so manieth review of a lane.
async fn over_one(lane: &Lane, first: u32, start: Instant, length: Duration) -> Result<Vec<Answered>> {
    let (mut connection, mut since) = (Connection::open(&lane.target).await?, Instant::now());
    let mut all = Vec::new();
    for number in (first..).step_by(usize::try_from(lane.connections())?) {
        let due = lane.first + lane.every * number;
        if due >= length {
            break;
        }
        sleep_until((start + due).into()).await;
        if since.elapsed() > USED {
            (connection, since) = (Connection::open(&lane.target).await?, Instant::now());
        }
        let answer = connection.answer(usize::try_from(number)?, false).await?;
        let at = Instant::now();
        all.push(Answered {
            at,
            rewritten: rewrites(answer)?,
            suspected: find(answer, SUSPECTED).is_some(),
        });
    }
    Ok(all)
}

/// Whether an answer to a review has an image rewritten.
pub fn rewrites(body: &[u8]) -> Result<bool> {
    const KEY: &[u8] = b"\"patch\":\"";
    let Some(start) = find(body, KEY) else {
        return Ok(false);
    };
    let rest = &body[start + KEY.len()..];
    let end = find(rest, b"\"").context("a patch that does not end")?;
    let patch = STANDARD.decode(&rest[..end])?;
    Ok(find(&patch, REPLACED).is_some())
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
