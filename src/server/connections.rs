//! The connections of a server, and which of them makes way for another.
//!
//! A connection makes way only while its client is waited for, and the one that is waited for longest
//! goes first: with the handshake, with a first request, with the next one, or with the rest of one.
//! A request that is being served is never cut.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::connection::Progress;

/// Of so many connections that wait, the one that waited longest is remembered at a look at all.
const REMEMBERED: usize = 16;

/// Connections and their tasks, which end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    open: HashMap<Id, Open>,
    /// Those that waited longest when all were looked at last, the longest of all at the end. Whoever
    /// still waits as it did then has waited longer than all that are not among them.
    waiting: Vec<(u64, Id)>,
}

#[derive(Debug)]
struct Open {
    progress: Arc<Progress>,
    task: AbortHandle,
}

impl Connections {
    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Runs a connection, which tells `progress` how far it has come.
    pub(super) fn begin(
        &mut self,
        progress: Arc<Progress>,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = self.tasks.spawn(connection);
        self.open.insert(task.id(), Open { progress, task });
    }

    /// Waits for the end of one; none if there is none.
    pub(super) async fn ended(&mut self) -> Option<Result<(), JoinError>> {
        let ended = self.tasks.join_next_with_id().await?;
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.open.remove(&id);
        Some(ended.map(|_| ()))
    }

    /// Ends the connection whose client is waited for longest. Returns false if all are busy.
    pub(super) fn displace(&mut self) -> bool {
        if self.displace_remembered() {
            return true;
        }
        self.look();
        self.displace_remembered()
    }

    fn displace_remembered(&mut self) -> bool {
        while let Some((since, id)) = self.waiting.pop() {
            if let Some(open) = self.open.get(&id)
                && open.progress.displace(since)
            {
                open.task.abort();
                self.open.remove(&id);
                return true;
            }
        }
        false
    }

    /// Looks at all. For each that makes way afterwards that is a look at sixteen.
    fn look(&mut self) {
        let waits = |(id, open): (&Id, &Open)| Some((open.progress.waits()?, *id));
        self.waiting.extend(self.open.iter().filter_map(waits));
        let kept = self.waiting.len().div_ceil(REMEMBERED);
        if kept < self.waiting.len() {
            self.waiting.select_nth_unstable_by_key(kept, |(since, _)| *since);
            self.waiting.truncate(kept);
        }
        self.waiting.sort_unstable_by_key(|(since, _)| Reverse(*since));
    }
}
