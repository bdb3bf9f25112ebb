//! `kagami resolve`: the reference to pull now, one a line.

use std::fmt::Write as _;

use super::{arguments::ResolveArguments, once::Once, output};
use crate::domain::reason::Outcome;

pub(super) async fn run(arguments: ResolveArguments) -> anyhow::Result<()> {
    let ResolveArguments {
        images,
        once,
        namespace,
        verbose,
    } = arguments;
    let once = Once::start(&once).await?;
    let (text, why) = once
        .decide(&images, &namespace, |snapshot, decisions| {
            let (mut text, mut why) = (String::new(), Vec::new());
            for decision in decisions {
                let image = match (decision.outcome, &decision.rewritten) {
                    (Outcome::Rewritten, Some(rewritten)) => rewritten,
                    _ => decision.image,
                };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{image}");
                let mirror = decision
                    .mirror
                    .map(|mirror| format!(" ({})", snapshot.routing.mirror(mirror).name));
                why.push(format!(
                    "{}: {} {}{}: {}",
                    decision.image,
                    decision.outcome,
                    decision.reason,
                    mirror.unwrap_or_default(),
                    decision.reason.explanation()
                ));
            }
            (text, why)
        })
        .await?;
    if verbose {
        for line in &why {
            output::complain(line);
        }
    }
    output::print(&text)
}
