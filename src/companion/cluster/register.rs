//! Notes the mappings of all mirrors in a ConfigMap, so that Pods which are stuck on a mirror that was deleted, even
//! while nobody led, are known to be Kagami's.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use tokio::time::sleep;

use super::{
    leader::{Keeping, Leader},
    rescuer::Ward,
};
use crate::{
    api::MIRRORS_CONFIG_MAP,
    clock,
    cluster::{request::bounded, writer::NotWritten},
    domain::rescue::Register,
};

/// The key under which they stand.
const KEY: &str = "mirrors";

/// How often it is looked at who was gone for long enough, and whether somebody changed the ConfigMap.
const LOOK: Duration = Duration::from_mins(5);

/// Keeps the notes until this process may not write any more.
pub(super) async fn run(leader: Leader, ward: Ward) {
    let maps = Api::<ConfigMap>::namespaced(leader.client.clone(), &leader.namespace);
    let mut snapshots = leader.store.subscribe();
    let mut register = Register::default();
    let mut keeping = Keeping::of(MIRRORS_CONFIG_MAP);
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let kept = keep(&leader, &maps, &mut register).await;
        // Whatever came of it, what this leader saw itself counts.
        ward.set_former(register.gone(), &leader.store.snapshot());
        let pause = match kept {
            Ok(()) => {
                keeping.went_well();
                LOOK
            }
            Err(NotWritten::NotLeading) => return,
            Err(error) => keeping.failed(
                &error,
                "the mappings of mirrors: Pods that are stuck on a mirror which is deleted are known to this leader alone",
                LOOK,
            ),
        };
        let changed = async {
            while snapshots.changed().await.is_ok() {
                if !Arc::ptr_eq(&snapshots.borrow_and_update().routing, &snapshot.routing) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = changed => {}
            () = sleep(pause) => {}
        }
    }
}

/// Reads the notes, brings them up to date, and writes them where that changes them.
async fn keep(leader: &Leader, maps: &Api<ConfigMap>, register: &mut Register) -> Result<(), NotWritten> {
    let routing = leader.store.snapshot().routing.clone();
    register.update(&routing, clock::now());
    let mut map = bounded(maps.get(MIRRORS_CONFIG_MAP)).await?;
    let written = map.data.as_ref().and_then(|data| data.get(KEY));
    let mut next = written.map(|text| Register::read(text)).unwrap_or_default();
    next.merge(register);
    next.update(&routing, clock::now());
    *register = next;
    let text = register.write();
    if written == Some(&text) || written.is_none() && text.is_empty() {
        return Ok(());
    }
    map.data.get_or_insert_default().insert(KEY.to_owned(), text);
    let parameters = PostParams::default();
    let request = maps.replace(MIRRORS_CONFIG_MAP, &parameters, &map);
    leader.writer.write("ConfigMap", request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::leader::pause_after, *};

    #[test]
    fn what_stays_away_is_asked_for_ever_less_often() {
        let pauses: Vec<_> = (1..11)
            .map(|failed| pause_after(failed, LOOK).as_secs())
            .collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause_after(u32::MAX, LOOK), LOOK);
    }
}
