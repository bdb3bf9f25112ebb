//! Recognising what an earlier round of admission wrote, by mapping alone.

use super::{MirrorId, Place, Pod, Reference};
use crate::domain::routing::Routing;

/// Returns the mirror that turned the recorded original of a place into its present image. `name`
/// is the present image's normalised name. An original that somebody else wrote, for whatever
/// reason, does not map to the present image and so proves nothing.
pub(in crate::domain) fn carried(
    routing: &Routing,
    name: &str,
    pod: &Pod<'_>,
    place: &Place<'_>,
) -> Option<MirrorId> {
    let original = Reference::parse(pod.original(place)?).ok()?;
    let mut mirrors = routing
        .mirrors_named_by(name)
        .filter(|mirror| routing.mirror(*mirror).maps_to(&original, &place.image));
    let first = mirrors.next()?;
    // Where mirrors share a registry, only the decision tells which of them it was.
    let Some(second) = mirrors.next() else {
        return Some(first);
    };
    let recorded = recorded_mirror(pod, place);
    let mut mirrors = [first, second].into_iter().chain(mirrors);
    let found = mirrors.find(|mirror| recorded.as_deref() == Some(routing.mirror(*mirror).name.as_str()));
    Some(found.unwrap_or(first))
}

fn recorded_mirror(pod: &Pod<'_>, place: &Place<'_>) -> Option<String> {
    let decisions = pod.earlier_decisions()?;
    Some(
        decisions
            .get(&place.label().to_string())?
            .get("mirror")?
            .as_str()?
            .to_owned(),
    )
}
