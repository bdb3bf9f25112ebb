use super::*;

const KEY: &str = "docker.io/library/nginx:1.27";

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn proof(hex: char) -> Proof {
    let text = format!("sha256:{}", hex.to_string().repeat(64));
    Proof {
        digest: text.parse().unwrap(),
        media_type: MediaType::OciManifest,
        architectures: Architectures::ALL,
        size: None,
        public: None,
    }
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
    index.write("main", KEY, presence, verified_at, verified_at);
    index
}

#[track_caller]
fn proven(index: &Index, rules: &Rules, now: Timestamp) -> bool {
    matches!(index.judge("main", KEY, rules, now), Judgement::Proven(..))
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

    index.write("main", KEY, Presence::Present(proof('b')), at(2000), at(2000));
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
    let judge = |rules: &Rules, now| index.judge("main", KEY, rules, now);
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
    index.see("main", KEY, Presence::Present(proof('a')), at(2010));
    assert!(proven(&index, &rules(), at(2020)));
    index.write("main", KEY, Presence::Missing, at(2015), at(2015));
    assert!(!proven(&index, &rules(), at(2020)));
}

#[test]
fn own_looks_are_bounded_and_the_oldest_goes_first() {
    let mut index = Index::default();
    for number in 0..=SEEN_LIMIT {
        index.see(
            "main",
            &format!("docker.io/library/image:{number}"),
            Presence::Missing,
            at(2000),
        );
    }
    let judge = |number: usize| {
        let key = format!("docker.io/library/image:{number}");
        index.judge("main", &key, &rules(), at(2001))
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
        KEY,
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
        index.see("main", KEY, present(), at(2000));
        assert!(!proven(&index, &rules(), freshness_of_missing));
    }
    // The replica did.
    let mut own = index(present(), at(2000));
    own.see("main", KEY, Presence::Missing, at(2100));
    assert!(!proven(&own, &rules(), freshness_of_missing));
    // Having noted an image is no look at it.
    let mut noted = index(Presence::Unknown(None), at(2100));
    noted.see("main", KEY, present(), at(2000));
    assert!(proven(&noted, &rules(), freshness_of_missing));
}
