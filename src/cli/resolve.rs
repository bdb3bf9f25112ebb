//! `kagami resolve`: the reference to pull now, one a line.

use std::{borrow::Cow, fmt::Write as _};

use super::{
    arguments::{ReferenceForm, ResolveArguments},
    oneshot::{self, Asked, Once},
    output,
};
use crate::{
    domain::{
        decision::{Decision, Probing},
        foreign::Foreign,
        image::Reference,
        mirror::{Mode, Pin},
        reason::Outcome,
        snapshot::Snapshot,
    },
    state::replica::Images,
};

pub(super) async fn run(arguments: ResolveArguments) -> anyhow::Result<()> {
    let ResolveArguments {
        images,
        once: settings,
        namespace,
        form,
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
    let (text, why) = once
        .decide(&images, Mode::Enforce, |snapshot, decisions| {
            let (mut text, mut why) = (String::new(), Vec::new());
            for decision in decisions {
                let image = in_form(snapshot, decision, form);
                let rewritten = decision.outcome == Outcome::Rewritten;
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{image}");
                let mirror = decision
                    .mirror
                    .map(|mirror| format!(" ({})", snapshot.routing.mirror(mirror).name));
                let line = format!(
                    "{}: {} {}{}: {}",
                    Foreign(decision.image),
                    decision.outcome,
                    decision.reason,
                    mirror.unwrap_or_default(),
                    oneshot::cause(decision)
                );
                why.push((line, rewritten));
            }
            (text, why)
        })
        .await;
    for (line, is_rewritten) in &why {
        if verbose || !is_rewritten {
            output::complain(line);
        }
    }
    if verbose {
        once.notes.iter().for_each(|note| output::complain(note));
    }
    output::print(&text)
}

/// Returns the reference to pull: the mirror's, or what was given.
fn in_form<'d>(snapshot: &Snapshot, decision: &'d Decision<'_>, form: Option<ReferenceForm>) -> Cow<'d, str> {
    let reference = Reference::parse(decision.image);
    if let (Outcome::Rewritten, Some(rewritten)) = (decision.outcome, &decision.rewritten) {
        let again = form.and_then(|form| {
            let pin = match form {
                ReferenceForm::Tag => Pin::None,
                ReferenceForm::Digest => Pin::DigestOnly,
                ReferenceForm::Both => Pin::Digest,
            };
            let mapping = &snapshot.routing.mirror(decision.mirror?).mapping;
            mapping
                .map(&reference.ok()?, pin.form(decision.digest.as_ref()?))
                .ok()
        });
        return again.map_or(Cow::Borrowed(rewritten.as_str()), Cow::Owned);
    }
    let without_tag = reference.ok().filter(|_| form == Some(ReferenceForm::Digest));
    let without_tag = without_tag.and_then(|reference| {
        let (digest, tag) = (reference.digest()?, reference.tag()?);
        let name = decision.image.strip_suffix(digest)?.strip_suffix('@')?;
        let name = name.strip_suffix(tag)?.strip_suffix(':')?;
        Some(format!("{name}@{digest}"))
    });
    without_tag.map_or(Cow::Borrowed(decision.image), Cow::Owned)
}
