//! `kagami resolve`: the reference to pull now, one a line.

use std::fmt::Write as _;

use super::{
    arguments::ResolveArguments,
    oneshot::{Asked, Once},
    output,
};
use crate::{
    domain::{decision::Probing, mirror::Mode, reason::Outcome},
    state::replica::Images,
};

pub(super) async fn run(arguments: ResolveArguments) -> anyhow::Result<()> {
    let ResolveArguments {
        images,
        once: settings,
        namespace,
        verbose,
    } = arguments;
    let asked = Asked {
        images: Images::These(images.clone()),
        namespace,
        // A person wants this very image.
        probing: Probing::All,
        heal: true,
    };
    let once = match Once::start(&settings, asked).await {
        Ok(once) => once,
        Err(error) => {
            // Whoever waits for the answer can go on, whatever is wrong: every doubt means upstream.
            output::print(
                &images
                    .iter()
                    .fold(String::new(), |text, image| text + image + "\n"),
            )?;
            return Err(error);
        }
    };
    let (text, mut why) = once
        .decide(&images, Mode::Enforce, |snapshot, decisions| {
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
        .await;
    why.extend(once.notes);
    if verbose {
        for line in &why {
            output::complain(line);
        }
    }
    output::print(&text)
}
