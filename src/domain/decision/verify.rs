//! Recognising what an earlier round of admission wrote, by mapping alone.

use super::{MirrorId, Place, Pod, Reference};
use crate::domain::routing::Routing;

/// Returns the mirror that turned the recorded original of a place into its present image. `name`
/// is the present image's normalised name. An original that somebody else wrote, for whatever
/// reason, does not map to the present image and so proves nothing.
pub(super) fn carried(routing: &Routing, name: &str, pod: &Pod<'_>, place: &Place<'_>) -> Option<MirrorId> {
    let original = Reference::parse(pod.original(place)?).ok()?;
    routing
        .mirrors_named_by(name)
        .find(|mirror| routing.mirror(*mirror).maps_to(&original, &place.image))
}
