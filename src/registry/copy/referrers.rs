//! What refers to an image.

use crate::domain::copying::Plan;

use super::Copying;

/// Whether a registry lists referrers.
#[derive(Debug, Default)]
pub struct Lists;

impl Copying<'_> {
    pub(super) async fn bring_referrers(&self, _plan: &Plan) {}
    pub(super) async fn find_referrers(&self, _plan: &Plan) -> Vec<()> {
        Vec::new()
    }
    pub(super) async fn push_referrers(&self, _found: Vec<()>) {}
}
