use proptest::prelude::*;

use super::*;
use crate::domain::examples::{NOW, key, proof};

fn nginx() -> KeyRef<'static> {
    key("docker.io/library/nginx:1.27")
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn rules() -> Rules {
    Rules {
        kind: Kind::Hosted,
        freshness: Freshness::default(),
        refresh: Duration::from_hours(1),
        proven_since: at(1000),
    }
}

fn index(presence: Presence, verified_at: Timestamp) -> Index {
    let mut index = Index::default();
    index.write("main", nginx(), presence, verified_at, verified_at);
    index
}

#[track_caller]
fn proven(index: &Index, rules: &Rules, now: Timestamp) -> bool {
    matches!(index.judge("main", nginx(), rules, now), Judgement::Proven(..))
}

#[test]
fn a_proof_lasts_as_long_as_its_freshness_and_no_longer() {
    let index = index(Presence::Present(proof('a')), at(2000));
    assert!(proven(&index, &rules(), at(2600)));
    assert!(!proven(&index, &rules(), at(2601)));
}

#[test]
fn a_proof_older_than_the_last_outage_is_none() {
    let index = index(Presence::Present(proof('a')), at(2000));
    let outage = |proven_since| Rules {
        proven_since,
        ..rules()
    };
    assert!(proven(&index, &outage(at(2000)), at(2100)));
    assert!(!proven(&index, &outage(at(2001)), at(2100)));
}

#[test]
fn a_proof_from_the_future_is_none_past_five_seconds() {
    let index = index(Presence::Present(proof('a')), at(2005));
    assert!(proven(&index, &rules(), at(2000)));
    assert!(!proven(&index, &rules(), at(1999)));
}

#[test]
fn a_complete_sweep_renews_what_it_covered_and_nothing_else() {
    let mut index = index(Presence::Present(proof('a')), at(2000));
    let through = index.version();
    index.swept(
        "main",
        Class::Tag,
        Swept {
            started_at: at(2500),
            through,
        },
    );
    assert!(proven(&index, &rules(), at(3100)));
    assert!(!proven(&index, &rules(), at(3101)));

    index.write("main", nginx(), Presence::Present(proof('b')), at(2000), at(2000));
    assert!(
        !proven(&index, &rules(), at(3100)),
        "written after the sweep, so the sweep did not see it"
    );

    let mut index = self::index(Presence::Present(proof('a')), at(2000));
    let through = index.version();
    index.swept(
        "main",
        Class::Digest,
        Swept {
            started_at: at(2500),
            through,
        },
    );
    assert!(
        !proven(&index, &rules(), at(3000)),
        "a sweep of the other class says nothing"
    );
}

#[test]
fn absence_is_remembered_for_hosted_mirrors_only_and_briefly() {
    let index = index(Presence::Missing, at(2000));
    let judge = |rules: &Rules, now| index.judge("main", nginx(), rules, now);
    assert_eq!(judge(&rules(), at(2030)), Judgement::Absent(at(2000)));
    assert_eq!(judge(&rules(), at(2031)), Judgement::Unproven(None));
    let pull_through = Rules {
        kind: Kind::PullThrough,
        ..rules()
    };
    assert_eq!(
        judge(&pull_through, at(2001)),
        Judgement::Unproven(Some(Reason::ImageMissing))
    );
}

#[test]
fn tags_of_pull_through_mirrors_last_as_long_as_their_refresh() {
    let index = index(Presence::Present(proof('a')), at(2000));
    let pull_through = Rules {
        kind: Kind::PullThrough,
        ..rules()
    };
    assert!(proven(&index, &pull_through, at(5600)));
    assert!(!proven(&index, &pull_through, at(5601)));
}

#[test]
fn the_newer_of_shared_and_own_knowledge_wins() {
    let mut index = index(Presence::Missing, at(2000));
    index.see("main", nginx(), Presence::Present(proof('a')), at(2010));
    assert!(proven(&index, &rules(), at(2020)));
    index.write("main", nginx(), Presence::Missing, at(2015), at(2015));
    assert!(!proven(&index, &rules(), at(2020)));
}

/// Sweeps look for what is not there ever more seldom, so their end says nothing of it: neither that it is
/// still absent, nor that a later look of the replica's own was wrong.
#[test]
fn no_sweep_renews_an_absence() {
    for presence in [Presence::Missing, Presence::Unknown(Some(Reason::Unauthorized))] {
        let mut index = index(presence.clone(), at(2000));
        index.see("main", nginx(), Presence::Present(proof('a')), at(2100));
        let swept = Swept {
            started_at: at(2200),
            through: index.version(),
        };
        index.swept("main", Class::Tag, swept);
        assert!(proven(&index, &rules(), at(2201)), "{presence:?}");
        let judgement = index.judge("main", nginx(), &rules(), at(2701));
        assert_eq!(judgement, Judgement::Unproven(None), "{presence:?}");
    }
}

/// A replica does not read what a single manifest is for; the companion does.
#[test]
fn an_own_look_takes_over_the_operating_system_that_is_known() {
    let of = |hex, platforms| {
        Presence::Present(Proof {
            platforms,
            ..proof(hex)
        })
    };
    let check = |index: &Index, expected: Platforms| {
        let Judgement::Proven(proof, _) = index.judge("main", nginx(), &rules(), at(2003)) else {
            panic!("there is a fresh proof");
        };
        assert_eq!(proof.platforms, expected);
    };
    let mut known_first = index(of('a', Platforms::WINDOWS), at(2000));
    known_first.see("main", nginx(), of('a', Platforms::ASSUMED), at(2001));
    check(&known_first, Platforms::WINDOWS);
    known_first.see("main", nginx(), of('b', Platforms::ASSUMED), at(2002));
    check(&known_first, Platforms::ASSUMED);

    let mut seen_first = Index::default();
    seen_first.see("main", nginx(), of('a', Platforms::ASSUMED), at(2001));
    seen_first.write("main", nginx(), of('a', Platforms::WINDOWS), at(2000), at(2002));
    check(&seen_first, Platforms::WINDOWS);
}

#[test]
fn own_looks_are_bounded_and_the_oldest_goes_first() {
    let mut index = Index::default();
    for number in 0..=SEEN_LIMIT {
        index.see(
            "main",
            key(&format!("docker.io/library/image:{number}")),
            Presence::Missing,
            at(2000),
        );
    }
    let judge = |number: usize| {
        let image = format!("docker.io/library/image:{number}");
        index.judge("main", key(&image), &rules(), at(2001))
    };
    assert_eq!(judge(0), Judgement::Unproven(None));
    assert_eq!(judge(1), Judgement::Absent(at(2000)));
    assert_eq!(judge(SEEN_LIMIT), Judgement::Absent(at(2000)));
}

#[test]
fn a_look_in_vain_is_not_remembered_as_knowledge() {
    let mut index = index(Presence::Present(proof('a')), at(2000));
    index.see(
        "main",
        nginx(),
        Presence::Unknown(Some(Reason::RegistryError)),
        at(2010),
    );
    assert!(proven(&index, &rules(), at(2020)));
}

#[test]
fn an_absence_ends_the_proof_before_it_for_good() {
    let present = || Presence::Present(proof('a'));
    let freshness_of_missing = at(2100 + 31);
    // The companion saw later that the image is gone, or that nobody may have it.
    for later in [Presence::Missing, Presence::Unknown(Some(Reason::Unauthorized))] {
        let mut index = index(later, at(2100));
        index.see("main", nginx(), present(), at(2000));
        assert!(!proven(&index, &rules(), freshness_of_missing));
    }
    // The replica did.
    let mut own = index(present(), at(2000));
    own.see("main", nginx(), Presence::Missing, at(2100));
    assert!(!proven(&own, &rules(), freshness_of_missing));
    // Having noted an image is no look at it.
    let mut noted = index(Presence::Unknown(None), at(2100));
    noted.see("main", nginx(), present(), at(2000));
    assert!(proven(&noted, &rules(), freshness_of_missing));
}

#[test]
fn a_sweep_is_believed_once_everything_written_before_its_end_has_arrived() {
    let told = |started_at, through| Swept {
        started_at: at(started_at),
        through: Version(through),
    };
    let mut index = Index::default();
    let present = Presence::Present(proof('a'));
    index.write_at("main", nginx(), present.clone(), at(2000), Version(40), at(2000));
    index.reached(Version(49));
    index.swept("main", Class::Tag, told(2500, 45));
    assert!(proven(&index, &rules(), at(3000)));
    // A later one that ends after a write that is still to come does not count, and the one before
    // it goes on counting.
    index.swept("main", Class::Tag, told(3000, 50));
    assert!(proven(&index, &rules(), at(3100)));
    assert!(!proven(&index, &rules(), at(3101)));
    index.reached(Version(50));
    assert!(proven(&index, &rules(), at(3600)));
    // Written after the sweep: its own proof counts, and no other.
    index.write_at("main", nginx(), present, at(2000), Version(51), at(3600));
    assert!(!proven(&index, &rules(), at(3600)));
}

#[test]
fn what_a_listing_does_not_name_is_gone_at_its_end_and_not_before() {
    let mut index = index(Presence::Present(proof('a')), at(2000));
    let other = key("docker.io/library/redis:8");
    index.write("main", other, Presence::Missing, at(2000), at(2000));
    index.begin_listing();
    index.write_at("main", other, Presence::Missing, at(2001), Version(7), at(2001));
    assert!(index.contains("main", nginx()));
    index.end_listing();
    assert!(!index.contains("main", nginx()));
    assert!(index.contains("main", other));
}

#[test]
fn changes_are_told_once_and_removals_among_them() {
    let mut index = Index::default();
    let [before, a, b] = ["x.io/before:1", "x.io/a:1", "x.io/b:1"].map(key);
    index.write("main", before, Presence::Missing, at(1), at(1));
    assert!(index.take_changes().is_empty(), "nobody asked before");
    index.track_changes();
    for key in [a, a, b] {
        index.write("main", key, Presence::Missing, at(1), at(1));
    }
    index.remove("main", before);
    index.remove("main", key("x.io/never-there:1"));
    let changed: Vec<_> = index.take_changes().into_iter().map(|(_, key)| key).collect();
    assert_eq!(changed, [a, b, before].map(ImageKey::from));
    index.make_room("main", 2);
    assert_eq!(index.take_changes().len(), 1);
    assert!(index.take_changes().is_empty());
}

#[test]
fn a_sweep_renews_what_it_covered_only() {
    let mut index = Index::default();
    let present = Presence::Present(proof('a'));
    let [gone, a, b, c] = ["x.io/gone:1", "x.io/a:1", "x.io/b:1", "x.io/c:1"].map(key);
    index.write("main", gone, Presence::Missing, at(1), at(1));
    let through = index.write("main", a, present.clone(), at(1), at(1));
    index.write("main", b, present, at(1), at(1));
    let swept = Swept {
        started_at: at(5),
        through,
    };
    index.swept("main", Class::Tag, swept);
    assert_eq!(index.verified_at("main", a), Some(at(5)));
    assert_eq!(index.verified_at("main", b), Some(at(1)));
    assert_eq!(index.verified_at("main", gone), Some(at(1)));
    assert_eq!(index.verified_at("main", c), None);
}

#[test]
fn a_look_that_newer_knowledge_replaces_is_forgotten_and_no_other() {
    let looks = |index: &Index| index.seen["main"].entries.len();
    let mut index = Index::default();
    index.see("main", nginx(), Presence::Present(proof('a')), at(2000));
    index.write("main", nginx(), Presence::Unknown(None), at(2001), at(2001));
    assert_eq!(looks(&index), 1, "having noted an image is no look at it");
    index.write("main", nginx(), Presence::Missing, at(1999), at(2001));
    assert_eq!(looks(&index), 1, "an older look does not replace a newer one");
    index.write("main", nginx(), Presence::Present(proof('a')), at(2000), at(2001));
    assert_eq!(looks(&index), 0);
    assert!(proven(&index, &rules(), at(2100)));
}

#[test]
fn an_image_is_in_use_while_reviews_and_pods_name_it() {
    let index = index(Presence::Missing, at(2000));
    let used = || index.get("main", nginx()).unwrap().last_used();
    assert_eq!(used(), at(2000), "writing counts as use");
    index.judge("main", nginx(), &rules(), at(2100));
    assert_eq!(used(), at(2100));
    index.touch("main", nginx(), at(2200).after(Duration::from_millis(999)));
    assert_eq!(used(), at(2200), "to the second");
    index.touch("other", nginx(), at(2300));
    index.touch("main", key("docker.io/library/redis:8"), at(2300));
    assert_eq!(used(), at(2200));
}

#[test]
fn room_is_made_by_what_was_used_longest_ago() {
    let mut index = Index::default();
    let image = |number: u64| -> ImageKey { key(&format!("docker.io/library/nginx:{number}")).into() };
    for number in 0..32 {
        index.write(
            "main",
            image(number).by_ref(),
            Presence::Missing,
            at(1),
            at(100 + number),
        );
    }
    index.write("other", nginx(), Presence::Missing, at(1), at(1));
    // The oldest is wanted again.
    index.touch("main", image(0).by_ref(), at(500));
    index.track_changes();
    index.make_room("main", 33);
    assert!(index.take_changes().is_empty(), "there is room");
    index.make_room("main", 32);
    let gone: Vec<_> = index.take_changes().into_iter().collect();
    let expected = [1, 2, 3].map(|number| (Box::from("main"), image(number)));
    assert_eq!(gone, expected, "one more than a sixteenth part");
    let left = (0..32).filter(|number| index.contains("main", image(*number).by_ref()));
    assert_eq!(left.count(), 29);
    assert!(index.contains("other", nginx()));
}

#[test]
fn what_is_known_is_counted_by_mirror_class_and_presence() {
    let mut index = Index::default();
    let pinned = format!("docker.io/library/nginx@{}", proof('a').digest);
    let of_main = [
        ("x.io/a:1", Presence::Present(proof('a'))),
        ("x.io/a:2", Presence::Present(proof('a'))),
        ("x.io/a:3", Presence::Missing),
        ("x.io/a:4", Presence::Unknown(None)),
        (&pinned, Presence::Missing),
    ];
    for (image, presence) in of_main {
        index.write("main", key(image), presence, at(1), at(1));
    }
    index.write("other", nginx(), Presence::Missing, at(1), at(1));
    let counts = |present, missing, unknown| Counts {
        present,
        missing,
        unknown,
    };
    let all = [("main", counts(2, 2, 1)), ("other", counts(0, 1, 0))];
    assert_eq!(
        index.counts(),
        all.map(|(name, counts)| (name.to_owned(), counts)).into()
    );
    assert_eq!(index.counts_of("main", Class::Tag), counts(2, 1, 1));
    assert_eq!(index.counts_of("main", Class::Digest), counts(0, 1, 0));
    assert_eq!(index.counts_of("nobody", Class::Tag), counts(0, 0, 0));
    assert_eq!((index.len("main"), index.len("nobody")), (5, 0));

    index.retain_mirrors(|mirror| mirror == "other");
    assert_eq!((index.len("main"), index.len("other")), (0, 1));
}

/// Something that happens to an index, on one of a few mirrors and images.
#[derive(Clone, Debug)]
enum Event {
    Write(u8, u8, u8),
    See(u8, u8, u8),
    Remove(u8, u8),
    Begin,
    End,
    MakeRoom(u8, usize),
    Retain(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let (mirror, image, presence) = (0..3_u8, 0..12_u8, 0..3_u8);
    prop_oneof![
        8 => (mirror.clone(), image.clone(), presence.clone()).prop_map(|(m, i, p)| Event::Write(m, i, p)),
        2 => (mirror.clone(), image.clone(), presence).prop_map(|(m, i, p)| Event::See(m, i, p)),
        3 => (mirror.clone(), image).prop_map(|(m, i)| Event::Remove(m, i)),
        1 => Just(Event::Begin),
        1 => Just(Event::End),
        1 => (mirror.clone(), 1..6_usize).prop_map(|(m, limit)| Event::MakeRoom(m, limit)),
        1 => mirror.prop_map(Event::Retain),
    ]
}

fn name(mirror: u8) -> String {
    format!("mirror-{mirror}")
}

fn image(number: u8) -> ImageKey {
    let text = if number.is_multiple_of(2) {
        format!("docker.io/library/nginx:{number}")
    } else {
        format!("docker.io/library/nginx-{number}@{}", proof('a').digest)
    };
    key(&text).into()
}

fn presence(number: u8) -> Presence {
    match number {
        0 => Presence::Present(proof('a')),
        1 => Presence::Missing,
        _ => Presence::Unknown(None),
    }
}

/// Counts the entries of a mirror by walking them.
fn recount(index: &Index, mirror: &str, class: Class) -> Counts {
    let mut counts = Counts::default();
    let of_class = index.entries(mirror).filter(|(key, _)| key.class() == class);
    for (_, entry) in of_class {
        match entry.presence {
            Presence::Present(_) => counts.present += 1,
            Presence::Missing => counts.missing += 1,
            Presence::Unknown(_) => counts.unknown += 1,
        }
    }
    counts
}

proptest! {
    #[test]
    fn counts_are_those_of_a_recount_whatever_happens(events in proptest::collection::vec(event(), 0..80)) {
        let mut index = Index::default();
        for event in events {
            match event {
                Event::Write(m, i, p) => {
                    index.write(&name(m), image(i).by_ref(), presence(p), at(1), at(1));
                }
                Event::See(m, i, p) => index.see(&name(m), image(i).by_ref(), presence(p), at(2)),
                Event::Remove(m, i) => index.remove(&name(m), image(i).by_ref()),
                Event::Begin => index.begin_listing(),
                Event::End => index.end_listing(),
                Event::MakeRoom(m, limit) => index.make_room(&name(m), limit),
                Event::Retain(m) => index.retain_mirrors(|mirror| mirror != name(m)),
            }
            let all = index.counts();
            for mirror in (0..3).map(name) {
                let [tags, digests] = [Class::Tag, Class::Digest].map(|class| {
                    let recounted = recount(&index, &mirror, class);
                    assert_eq!(index.counts_of(&mirror, class), recounted);
                    recounted
                });
                let of_mirror = all.get(&mirror).copied().unwrap_or_default();
                prop_assert_eq!(of_mirror.present, tags.present + digests.present);
                prop_assert_eq!(of_mirror.missing, tags.missing + digests.missing);
                prop_assert_eq!(of_mirror.unknown, tags.unknown + digests.unknown);
            }
        }
    }
}

#[test]
fn a_sweep_proves_nothing_of_a_state_from_before_it() {
    for (known, reached) in [
        // The image went, and a restored backup has it again: the version tells, or else the image's own.
        (None, Version(35)),
        (Some(Version(40)), Version(60)),
    ] {
        let mut index = Index::default();
        if let Some(version) = known {
            index.write_at("main", nginx(), Presence::Missing, at(2000), version, at(2000));
        }
        index.reached(Version(50));
        let swept = Swept {
            started_at: at(3000),
            through: Version(45),
        };
        index.swept("main", Class::Tag, swept);
        index.begin_listing();
        let present = Presence::Present(proof('a'));
        index.write_at("main", nginx(), present, at(1900), Version(30), at(2000));
        index.end_listing();
        index.reached(reached);
        assert!(!proven(&index, &rules(), at(3100)), "{known:?}");
        // It does again once it was looked at.
        index.swept(
            "main",
            Class::Tag,
            Swept {
                started_at: at(3050),
                through: reached,
            },
        );
        assert!(proven(&index, &rules(), at(3100)), "{known:?}");
    }
}

#[test]
fn why_an_image_was_not_copied_is_told_while_it_is_missing() {
    use copying::Reason as NotCopied;

    let mut index = Index::default();
    index.track_changes();
    let nginx = key("docker.io/library/nginx:1");
    let (full, refused) = (Some(NotCopied::QuotaExceeded), Some(NotCopied::PushForbidden));
    index.write("a", nginx, Presence::Missing, NOW, NOW);
    index.take_changes();
    assert_eq!(index.not_copied("a", nginx), None);
    for (reason, is_news) in [
        (full, true),
        (full, false),
        (refused, true),
        (None, true),
        (None, false),
        (full, true),
    ] {
        index.set_not_copied("a", nginx, reason);
        assert_eq!(index.not_copied("a", nginx), reason);
        assert_eq!(!index.take_changes().is_empty(), is_news, "{reason:?}");
    }
    // Another look that finds it missing changes nothing.
    index.write("a", nginx, Presence::Missing, NOW, NOW);
    assert_eq!(index.not_copied("a", nginx), full);
    assert_eq!(index.not_copied("b", nginx), None);
    // It came, by whatever hands; when it goes again nothing was tried yet.
    index.write("a", nginx, Presence::Present(proof('a')), NOW, NOW);
    assert_eq!(index.not_copied("a", nginx), None);
    index.write("a", nginx, Presence::Missing, NOW, NOW);
    assert_eq!(index.not_copied("a", nginx), None);
    // What others tell: a name that is not known says nothing.
    index.learn_not_copied("a", nginx, Some("QuotaExceeded"));
    assert_eq!(index.not_copied("a", nginx), full);
    index.learn_not_copied("a", nginx, Some("OfANewerVersion"));
    assert_eq!(index.not_copied("a", nginx), None);
    index.learn_not_copied("a", nginx, Some("QuotaExceeded"));
    index.learn_not_copied("a", nginx, None);
    assert_eq!(index.not_copied("a", nginx), None);
    index.set_not_copied("a", nginx, full);
    index.retain_mirrors(|_| false);
    index.write("a", nginx, Presence::Missing, NOW, NOW);
    assert_eq!(index.not_copied("a", nginx), None);
}

#[test]
fn of_so_many_images_it_is_told_and_no_more() {
    let mut index = Index::default();
    let reason = Some(copying::Reason::ImageMissing);
    let image = |number: usize| format!("docker.io/library/app:{number}");
    for number in 0..NOT_COPIED_LIMIT + 2 {
        let image = image(number);
        index.write("a", key(&image), Presence::Missing, NOW, NOW);
        index.set_not_copied("a", key(&image), reason);
    }
    let kept = index.not_copied["a"].len();
    assert!(
        kept <= NOT_COPIED_LIMIT && kept > NOT_COPIED_LIMIT / 10 * 9,
        "{kept}"
    );
    // What is gone makes room.
    index.remove("a", key(&image(0)));
    index.set_not_copied("a", key(&image(NOT_COPIED_LIMIT)), reason);
    assert_eq!(index.not_copied("a", key(&image(NOT_COPIED_LIMIT))), reason);
}

#[test]
fn a_tag_is_known_to_have_moved_while_the_mirror_has_another_image() {
    let mut index = Index::default();
    index.track_changes();
    let tag = nginx();
    let present = |hex| Presence::Present(proof(hex));
    let of = |hex| proof(hex).digest;
    index.write("main", tag, present('a'), NOW, NOW);
    index.take_changes();
    for (upstream, is_news) in [
        (Some('a'), false),
        (Some('b'), true),
        (Some('b'), false),
        (Some('c'), true),
        // Nobody can tell any more.
        (None, true),
        (None, false),
        (Some('b'), true),
    ] {
        let digest = upstream.map(of);
        assert_eq!(
            index.set_upstream("main", tag, digest.as_ref()),
            is_news,
            "{upstream:?}"
        );
        assert_eq!(!index.take_changes().is_empty(), is_news, "{upstream:?}");
        let moved = digest.filter(|digest| *digest != of('a'));
        assert_eq!(index.moved("main", tag), moved.as_ref());
    }
    assert_eq!((index.moved_count("main"), index.moved_count("other")), (1, 0));
    assert!(index.has_moved("main", tag, Some(&of('a'))) && index.has_moved("main", tag, None));
    assert!(!index.has_moved("main", tag, Some(&of('b'))));
    // No look at the mirror that finds the same, or nothing to tell, changes that.
    index.write("main", tag, present('a'), NOW, NOW);
    index.write(
        "main",
        tag,
        Presence::Unknown(Some(Reason::RegistryError)),
        NOW,
        NOW,
    );
    assert_eq!(index.moved("main", tag), None, "nobody knows what the mirror has");
    index.set_upstream("main", tag, Some(&of('c')));
    index.write("main", tag, present('a'), NOW, NOW);
    assert_eq!(index.moved("main", tag), Some(&of('b')));
    // Upstream's comes, or the mirror loses its own, and is brought what upstream has then.
    index.write("main", tag, present('b'), NOW, NOW);
    assert_eq!(index.moved("main", tag), None);
    assert!(!index.has_moved("main", tag, None));
    index.set_upstream("main", tag, Some(&of('c')));
    index.write("main", tag, Presence::Missing, NOW, NOW);
    index.write("main", tag, present('b'), NOW, NOW);
    assert_eq!(index.moved("main", tag), None);
    // What others tell; what is no digest says nothing.
    index.learn_upstream("main", tag, Some(&of('c').to_string()));
    assert_eq!(index.moved("main", tag), Some(&of('c')));
    index.learn_upstream("main", tag, Some("latest"));
    assert_eq!(index.moved("main", tag), None);
    index.set_upstream("main", tag, Some(&of('c')));
    index.remove("main", tag);
    index.write("main", tag, present('b'), NOW, NOW);
    assert_eq!(index.moved("main", tag), None);
}

#[test]
fn what_moved_is_copied_anew_where_the_mirror_follows_and_tells_why_it_is_not() {
    use crate::domain::{
        examples::{copying, mirror},
        mirror::{Drift, Tags},
    };

    let mut index = index(Presence::Present(proof('a')), NOW);
    let settings = |copying, drift| Mirror {
        copying,
        tags: Tags {
            drift,
            ..Tags::default()
        },
        ..mirror("main", &["docker.io"])
    };
    let follows = settings(Some(copying()), Drift::Sync);
    assert!(!index.needs_copy(&follows, nginx()));
    index.set_upstream("main", nginx(), Some(&proof('b').digest));
    assert!(index.needs_copy(&follows, nginx()));
    for other in [
        settings(Some(copying()), Drift::Warn),
        settings(Some(copying()), Drift::Keep),
        settings(None, Drift::Sync),
    ] {
        assert!(!index.needs_copy(&other, nginx()), "{other:?}");
    }
    let reason = Some(copying::Reason::QuotaExceeded);
    index.set_not_copied("main", nginx(), reason);
    index.write("main", nginx(), Presence::Present(proof('a')), NOW, NOW);
    assert_eq!(index.not_copied("main", nginx()), reason);
    index.write("main", nginx(), Presence::Present(proof('b')), NOW, NOW);
    assert_eq!(index.not_copied("main", nginx()), None);
}

#[test]
fn of_so_many_moved_tags_it_is_known_and_no_more() {
    let mut index = Index::default();
    let image = |number: usize| format!("docker.io/library/app:{number}");
    for number in 0..MOVED_LIMIT + 2 {
        let image = image(number);
        index.write("a", key(&image), Presence::Present(proof('a')), NOW, NOW);
        index.set_upstream("a", key(&image), Some(&proof('b').digest));
        assert!(index.moved("a", key(&image)).is_some());
    }
    let kept = index.moved_count("a");
    assert!(kept <= MOVED_LIMIT && kept > MOVED_LIMIT / 10 * 9, "{kept}");
}
