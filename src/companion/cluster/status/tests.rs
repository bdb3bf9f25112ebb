use std::time::Duration;

use super::super::placed::Told;
use super::{conditions::MESSAGE, pods::LOOPING, *};
use crate::{
    api::newer::Consequence,
    companion::mirror::reports::Refusal,
    domain::{
        health::{Fault, State},
        presence::Counts,
    },
};

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn healthy(since: u64) -> Health {
    Health {
        state: State::Healthy,
        fault: None,
        cause: None,
        since: at(since),
        refused_since: None,
        proven_since: at(since),
    }
}

fn seen() -> Seen<'static> {
    Seen {
        generation: 1,
        health: Some(healthy(10)),
        credentials: Some(Ok(())),
        ..Seen::default()
    }
}

fn condition<'a>(status: &'a ImageMirrorStatus, type_: &str) -> &'a Condition {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .unwrap()
}

#[test]
fn every_condition_has_its_place_in_the_page_for_troubles() {
    let page = include_str!("../../../../docs/troubleshooting.md");
    let (_, conditions) = page.split_once("\n## Conditions of an ImageMirror\n").unwrap();
    let (conditions, _) = conditions.split_once("\n## ").unwrap();
    for type_ in ConditionType::ALL {
        let heading = format!("\n### `{}`\n", type_.as_str());
        assert!(conditions.contains(&heading), "{heading}");
    }
    // All that these files set, but for the variables: those are names of other lists.
    let own = [
        include_str!("mod.rs"),
        include_str!("conditions.rs"),
        include_str!("mirror.rs"),
        include_str!("pods.rs"),
        include_str!("settings.rs"),
    ]
    .concat();
    let faults = Fault::ALL.map(Fault::as_str);
    let consequences = [
        Consequence::Ignored,
        Consequence::CapabilityOff,
        Consequence::NotTaken,
    ];
    let reasons = own.split('"').skip(1).step_by(2).filter(|text| {
        let is_word = text.chars().all(char::is_alphanumeric) && text.starts_with(char::is_uppercase);
        let is_status = matches!(*text, "True" | "False");
        is_word && !is_status && text.len() > 1
    });
    for reason in reasons
        .chain(faults)
        .chain(consequences.map(Consequence::as_str))
        .chain(["SameRegistry", "SourceIsMirror"])
    {
        assert!(conditions.contains(&format!("`{reason}`")), "{reason}");
    }
}

#[test]
fn whether_a_mirror_takes_copies_is_told_where_some_are_tried() {
    let with = |is_filled, writing| Seen {
        is_filled,
        writing,
        ..seen()
    };
    let full = || Some(Err((copying::Reason::QuotaExceeded, "mirror.test: full".into())));
    let has = |status: &ImageMirrorStatus| {
        let told = condition_of(status, ConditionType::Writable)?;
        Some((told.status.clone(), told.reason.clone()))
    };
    let told = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    let first = plan(&ImageMirrorStatus::default(), &with(true, None), at(20));
    assert_eq!(has(&first), None, "nobody knows");
    let bad = plan(&first, &with(true, full()), at(21));
    assert_eq!(has(&bad), told("False", "QuotaExceeded"));
    let message = &condition(&bad, "Writable").message;
    assert!(
        message.contains("mirror.test: full. raise the quota"),
        "{message}"
    );
    // Serving goes on.
    assert_eq!(condition(&bad, "Healthy").status, "True");
    assert_eq!(plan(&bad, &with(true, full()), at(30)), bad);
    // A new leader does not know yet.
    assert_eq!(plan(&bad, &with(true, None), at(30)), bad);
    let good = plan(&bad, &with(true, Some(Ok(()))), at(31));
    assert_eq!(has(&good), told("True", "Writable"));
    let off = plan(&good, &with(false, None), at(32));
    assert_eq!(has(&off), told("Unknown", "NotFilled"));
    assert_eq!(has(&plan(&first, &with(false, None), at(32))), None);
}

#[test]
fn what_other_mirrors_stand_in_the_way_of_is_told() {
    let paused = Seen {
        paused: true,
        ..seen()
    };
    let told = plan(&ImageMirrorStatus::default(), &paused, at(20));
    let ready = condition(&told, "Ready");
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "Paused")
    );
    let faults = ["spec.x: wrong".to_owned()];
    let faulty = Seen {
        faults: &faults,
        ..paused
    };
    let told = plan(&ImageMirrorStatus::default(), &faulty, at(20));
    assert_eq!(
        condition(&told, "Ready").reason,
        "Faulty",
        "that stays when it is released"
    );

    let overlapping = Seen {
        overlaps: vec![Overlap::SamePlace {
            other: "b".to_owned(),
        }],
        ..seen()
    };
    let before = plan(&ImageMirrorStatus::default(), &seen(), at(20));
    let of = |status: &ImageMirrorStatus| {
        let mut conditions = status.conditions.iter();
        conditions
            .find(|condition| condition.type_ == "MirrorsOverlap")
            .map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    assert_eq!(of(&before), None);
    let status = plan(&before, &overlapping, at(30));
    let (reason, message) = of(&status).unwrap();
    assert_eq!(reason, "SameRegistry");
    assert!(
        message.starts_with("ImageMirror b has the same registry"),
        "{message}"
    );
    assert_eq!(of(&plan(&status, &seen(), at(40))).unwrap().0, "Apart");
}

#[test]
fn mirrors_of_one_registry_with_different_selectors_are_told_of_and_of_their_separation() {
    let of = |before: &ImageMirrorStatus, others: &[&'static str], more| {
        let seen = Seen {
            not_separated: (others.to_vec(), more),
            ..seen()
        };
        plan(before, &seen, at(20))
    };
    let apart = of(&ImageMirrorStatus::default(), &[], 0);
    assert!(condition_of(&apart, ConditionType::AccessNotSeparated).is_none());
    let shared = of(&apart, &["b", "c", "d"], 2);
    let told = condition(&shared, "AccessNotSeparated");
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("True", "SelectorsDiffer")
    );
    assert!(
        told.message
            .starts_with("The registry overlaps with that of ImageMirror b, c, d and 2 more, which"),
        "{}",
        told.message
    );
    let ended = of(&shared, &[], 0);
    let told = condition(&ended, "AccessNotSeparated");
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("False", "Separated")
    );
}

#[test]
fn where_pods_may_not_go_forward_the_value_to_set_is_told() {
    let of = |before: &ImageMirrorStatus, allowed: Option<Result<(), String>>| {
        let seen = Seen {
            forward_allowed: allowed,
            ..seen()
        };
        plan(before, &seen, at(20))
    };
    let none = of(&ImageMirrorStatus::default(), None);
    assert!(condition_of(&none, ConditionType::ForwardAllowed).is_none());
    let not_listed = of(&none, Some(Err("m.test:5000/team".to_owned())));
    let told = condition(&not_listed, "ForwardAllowed");
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("False", "RegistryNotListed")
    );
    for part in ["rescue.registries", "m.test:5000/team"] {
        assert!(told.message.contains(part), "{}", told.message);
    }
    let listed = of(&not_listed, Some(Ok(())));
    assert_eq!(condition(&listed, "ForwardAllowed").status, "True");
    let off = of(&listed, None);
    let told = condition(&off, "ForwardAllowed");
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("False", "RescueOff")
    );
}

#[test]
fn what_is_not_in_force_is_told_by_its_reason() {
    let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
    let bad = Seen {
        health: None,
        ..seen()
    };
    let status = plan(&good, &bad, at(30));
    assert_eq!(status.health.unwrap().reason, "NotInForce");
}

#[test]
fn a_refusal_is_told_with_host_and_secret() {
    let refusals = [
        (
            Refusal::Registry,
            "mirror.test refuses the credentials of Secret read.",
        ),
        (
            Refusal::Challenge("the realm is nowhere".into()),
            "mirror.test answers, but no image can be asked for: the realm is nowhere.",
        ),
        (
            Refusal::Images,
            "mirror.test answers, but refuses every image that it was asked for with the credentials of \
             Secret read.",
        ),
    ];
    for (refusal, expected) in refusals {
        let refused = Seen {
            credentials: Some(Err((refusal.reason(), refusal.tell("mirror.test", Some("read"))))),
            ..seen()
        };
        let status = plan(&ImageMirrorStatus::default(), &refused, at(20));
        let told = condition(&status, "CredentialsValid");
        let reason = match refusal {
            Refusal::Challenge(_) => "ChallengeNotMet",
            Refusal::Registry | Refusal::Images => "Unauthorized",
        };
        assert_eq!((&*told.status, &*told.reason), ("False", reason));
        assert_eq!(told.message, expected);
    }
}

#[test]
fn the_same_again_is_nothing_to_write() {
    let status = plan(&ImageMirrorStatus::default(), &seen(), at(20));
    assert_eq!(plan(&status, &seen(), at(30)), status);
    assert_eq!(health(&status), Some(healthy(10)));
    assert_eq!(condition(&status, "Healthy").status, "True");
}

#[test]
fn health_is_told_of_the_form_in_force_and_of_no_faulty_one() {
    let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
    let faults = ["spec.sources: unknown".to_owned()];
    let faulty = |health| Seen {
        generation: 2,
        faults: &faults,
        health: Some(health),
        ..seen()
    };
    for health in [healthy(10), healthy(25)] {
        let status = plan(&good, &faulty(health), at(30));
        assert_eq!(generation_of_health(&status), Some(1));
        assert_eq!(condition(&status, "Ready").observed_generation, Some(2));
    }
}

#[test]
fn a_patch_says_what_changed_and_nothing_else() {
    let before = plan(&ImageMirrorStatus::default(), &seen(), at(20));
    let mut after = before.clone();
    after.platforms = vec!["amd64".to_owned()];
    after.health = None;
    assert_eq!(
        patch(&before, &after, 7),
        json!({
            "metadata": {"resourceVersion": "7"},
            "status": {"platforms": ["amd64"], "health": null},
        })
    );
    // What goes from within a field goes from the stored status too.
    let mut told = before.clone();
    told.health.as_mut().unwrap().message = Some("refused".to_owned());
    assert_eq!(
        patch(&told, &before, 7)["status"],
        json!({"health": {"message": null}})
    );
    let whole = patch(&ImageMirrorStatus::default(), &before, 7);
    let fields: Vec<_> = whole["status"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["conditions", "health"]);
}

#[test]
fn upstreams_are_told_while_they_fail() {
    let failing = Seen {
        failing_upstreams: vec!["docker.io".to_owned()],
        ..seen()
    };
    let status = plan(&ImageMirrorStatus::default(), &failing, at(20));
    assert_eq!(status.failing_upstreams, ["docker.io"]);
    assert!(plan(&status, &seen(), at(30)).failing_upstreams.is_empty());
}

#[test]
fn an_older_definition_is_told_with_the_remedy() {
    let told = |lacking: Option<&[String]>| {
        let seen = Seen { lacking, ..seen() };
        plan(&ImageMirrorStatus::default(), &seen, at(20))
    };
    let unknown = told(None).conditions.into_iter();
    assert_eq!(
        unknown
            .filter(|condition| condition.type_ == "SchemaCurrent")
            .count(),
        0
    );
    assert_eq!(condition(&told(Some(&[])), "SchemaCurrent").status, "True");
    let fields: Vec<String> = (0..7).map(|number| format!("spec.field{number}")).collect();
    let older = told(Some(&fields));
    let older = condition(&older, "SchemaCurrent");
    assert_eq!((&*older.status, &*older.reason), ("False", "OlderSchema"));
    for expected in [
        "spec.field0, spec.field1",
        "spec.field4 and 2 more",
        "kagami crds | kubectl apply",
    ] {
        assert!(older.message.contains(expected), "{}", older.message);
    }
}

#[test]
fn another_fault_of_a_mirror_that_is_down_is_nothing_to_write() {
    let down = |fault| Seen {
        health: Some(Health {
            state: State::Unhealthy,
            fault: Some(fault),
            cause: None,
            since: at(12),
            refused_since: None,
            proven_since: at(10),
        }),
        ..seen()
    };
    let status = plan(&ImageMirrorStatus::default(), &down(Fault::Refused), at(20));
    assert_eq!(condition(&status, "Healthy").reason, "ConnectionRefused");
    assert_eq!(status.health.as_ref().unwrap().reason, "ConnectionRefused");
    assert_eq!(plan(&status, &down(Fault::Timeout), at(30)), status);
}

#[test]
fn the_cause_of_a_failure_is_told_and_another_one_when_it_is_due() {
    let down = |cause: &str, cause_is_due| Seen {
        health: Some(Health {
            state: State::Unhealthy,
            fault: Some(Fault::Tls),
            cause: Some(cause.into()),
            since: at(12),
            refused_since: None,
            proven_since: at(10),
        }),
        cause_is_due,
        ..seen()
    };
    let status = plan(
        &ImageMirrorStatus::default(),
        &down("it has ended\n", false),
        at(20),
    );
    let told = condition(&status, "Healthy");
    assert_eq!(told.reason, "TLSHandshakeFailed");
    assert_eq!(
        told.message,
        r"The mirror failed its probes, and images stay upstream: it has ended\n"
    );
    assert_eq!(health(&status).unwrap().cause.as_deref(), Some("it has ended\n"));
    assert_eq!(plan(&status, &down("it has ended\n", true), at(30)), status);
    assert_eq!(plan(&status, &down("another name", false), at(30)), status);
    let later = plan(&status, &down("another name", true), at(90));
    let told_later = condition(&later, "Healthy");
    assert!(
        told_later.message.ends_with(": another name"),
        "{}",
        told_later.message
    );
    assert_eq!(told_later.last_transition_time, told.last_transition_time);
    // However long it is, the condition has a bound.
    let long = plan(&status, &down(&"é".repeat(10_000), true), at(90));
    assert!(condition(&long, "Healthy").message.len() <= MESSAGE);
}

#[test]
fn secrets_that_give_no_login_for_copies_are_told_until_they_do() {
    let of = |before: &ImageMirrorStatus, copy_logins: Option<Result<(), &str>>| {
        let seen = Seen {
            copy_logins: copy_logins.map(|told| told.map_err(str::to_owned)),
            ..seen()
        };
        plan(before, &seen, at(20))
    };
    let told = |status: &ImageMirrorStatus| {
        let condition = condition_of(status, ConditionType::CopyCredentialsValid);
        condition.map(|condition| (condition.status.clone(), condition.reason.clone()))
    };
    let is = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    let good = of(&ImageMirrorStatus::default(), Some(Ok(())));
    assert_eq!(told(&good), None);
    let faulty = of(&good, Some(Err("there is no Secret hub")));
    assert_eq!(told(&faulty), is("False", "SecretFaulty"));
    let message = &condition(&faulty, "CopyCredentialsValid").message;
    assert!(message.contains("there is no Secret hub."), "{message}");
    assert_eq!(told(&of(&faulty, Some(Ok(())))), is("True", "Given"));
    assert_eq!(told(&of(&faulty, None)), is("Unknown", "NotFilled"));
}

#[test]
fn a_mirror_that_took_nothing_and_is_asked_for_nothing_may_take_copies_by_now() {
    let of = |before: &ImageMirrorStatus, writing, is_idle| {
        let seen = Seen {
            is_filled: true,
            writing,
            is_idle,
            ..seen()
        };
        plan(before, &seen, at(20))
    };
    let told = |status: &ImageMirrorStatus| {
        let condition = condition_of(status, ConditionType::Writable);
        condition.map(|condition| condition.reason.clone())
    };
    let fault = || Some(Err((copying::Reason::QuotaExceeded, "no".into())));
    let full = of(&ImageMirrorStatus::default(), fault(), false);
    assert_eq!(told(&full).as_deref(), Some("QuotaExceeded"));
    // A new leader does not know at first.
    assert_eq!(told(&of(&full, None, false)).as_deref(), Some("QuotaExceeded"));
    let idle = of(&full, None, true);
    assert_eq!(told(&idle).as_deref(), Some("NothingToCopy"));
    assert_eq!(condition(&idle, "Writable").status, "Unknown");
    let good = of(&full, Some(Ok(())), false);
    assert_eq!(told(&of(&good, None, true)).as_deref(), Some("Writable"));
}

#[test]
fn images_that_nobody_can_read_are_told_until_there_are_none() {
    let readable = |told: Result<(), &str>| Seen {
        images_readable: Some(told.map_err(Into::into)),
        ..seen()
    };
    let of = |status: &ImageMirrorStatus| {
        let condition = condition_of(status, ConditionType::ImagesReadable);
        condition.map(|condition| (condition.status.clone(), condition.message.clone()))
    };
    let status = plan(&ImageMirrorStatus::default(), &readable(Ok(())), at(20));
    assert_eq!(of(&status), None);
    let status = plan(&status, &readable(Err("1 of 2")), at(30));
    assert_eq!(of(&status), Some(("False".to_owned(), "1 of 2".to_owned())));
    // Whoever has not looked yet leaves it as it is.
    assert_eq!(of(&plan(&status, &seen(), at(40))), of(&status));
    let status = plan(&status, &readable(Ok(())), at(50));
    assert_eq!(of(&status).unwrap().0, "True");
}

#[test]
fn a_bad_resource_is_told_and_its_last_good_form_stays() {
    let faults = ["spec.kind: no".to_owned()];
    let bad = Seen {
        generation: 2,
        faults: &faults,
        ..seen()
    };
    let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
    let status = plan(&good, &bad, at(30));
    let ready = condition(&status, "Ready");
    assert_eq!((&*ready.status, &*ready.reason), ("False", "Faulty"));
    assert_eq!(ready.message, "The last good form stays in force: spec.kind: no");
    assert_eq!(ready.last_transition_time, time(at(30)));
    assert_eq!(health(&status), Some(healthy(10)));
    assert_eq!(generation_of_health(&status), Some(1));
}

#[test]
fn a_faulty_secret_is_told_by_its_own_condition() {
    let told = |seen: Seen<'_>| {
        let status = plan(&ImageMirrorStatus::default(), &seen, at(20));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(health(&status), Some(healthy(10)));
        let told = condition(&status, "CredentialsValid");
        (told.status.clone(), told.reason.clone(), told.message.clone())
    };
    let (status, reason, message) = told(Seen {
        secret_fault: Some("cannot read Secret read: no"),
        ..seen()
    });
    assert_eq!((&*status, &*reason), ("False", "SecretFaulty"));
    assert!(
        message.ends_with("for an hour at most: cannot read Secret read: no"),
        "{message}"
    );
    let (status, reason, message) = told(Seen {
        missing_secret: Some("read"),
        ..seen()
    });
    assert_eq!((&*status, &*reason), ("False", "SecretNotFound"));
    assert!(message.contains("no Secret read"), "{message}");
    assert_eq!(told(seen()).1, "Accepted");
}

#[test]
fn what_is_not_known_is_told_by_its_worst_consequence() {
    let told =
        |current: &ImageMirrorStatus, unknown: &[Unknown]| plan(current, &Seen { unknown, ..seen() }, at(20));
    let before = told(&ImageMirrorStatus::default(), &[]);
    assert!(
        !before
            .conditions
            .iter()
            .any(|condition| condition.type_ == "UnknownFields")
    );
    let unknown = [
        ("spec.tags.drift", Consequence::CapabilityOff),
        ("spec.colour", Consequence::Ignored),
    ];
    let unknown = unknown.map(|(field, consequence)| Unknown {
        field: field.to_owned(),
        consequence,
    });
    let status = told(&before, &unknown);
    let told_now = condition(&status, "UnknownFields");
    assert_eq!((&*told_now.status, &*told_now.reason), ("True", "CapabilityOff"));
    assert!(
        told_now
            .message
            .ends_with("spec.tags is off because of spec.tags.drift; spec.colour is ignored."),
        "{}",
        told_now.message
    );
    assert!(condition(&status, "Ready").message.contains("UnknownFields"));
    let status = told(&status, &[]);
    assert_eq!(condition(&status, "UnknownFields").status, "False");
    assert_eq!(condition(&status, "Ready"), condition(&before, "Ready"));
}

#[test]
fn where_a_pull_secret_is_in_place_is_told_once_that_is_known() {
    let told = |before: &ImageMirrorStatus, placed: Option<Placed>| {
        let seen = Seen {
            pull_secrets: placed,
            ..seen()
        };
        plan(before, &seen, at(20))
    };
    let placed = |namespaces: &[&str], told| {
        let names: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        Some(Placed {
            in_place: names.into(),
            told,
        })
    };
    let never = told(&ImageMirrorStatus::default(), placed(&[], Told::NotAsked));
    assert!(condition_of(&never, ConditionType::PullSecretsInPlace).is_none());
    let status = told(&never, placed(&["blue", "red"], Told::InPlace));
    assert_eq!(status.pull_secret_namespaces, ["blue", "red"]);
    assert_eq!(condition(&status, "PullSecretsInPlace").status, "True");
    // A new leader that has not looked yet.
    assert_eq!(told(&status, None), status);
    let status = told(&status, placed(&["red"], Told::Foreign));
    assert_eq!(status.pull_secret_namespaces, ["red"]);
    let foreign = condition(&status, "PullSecretsInPlace");
    assert_eq!((&*foreign.status, &*foreign.reason), ("False", "SecretOfAnother"));
    assert!(
        foreign.message.contains("PullSecretNotReady"),
        "{}",
        foreign.message
    );
    let status = told(&status, placed(&[], Told::NotAsked));
    assert_eq!(status.pull_secret_namespaces, [] as [&str; 0]);
    assert_eq!(condition(&status, "PullSecretsInPlace").reason, "NotAsked");
}

#[test]
fn what_nodes_say_of_pulling_stays_until_they_say_otherwise() {
    let told = |nodes| Seen { nodes, ..seen() };
    let cannot = || Some(Nodes::CannotPull("node-1 cannot".into()));
    let status = plan(&ImageMirrorStatus::default(), &told(cannot()), at(20));
    assert_eq!(condition(&status, "NodesCanPull").message, "node-1 cannot");
    let condition_of = |status| {
        let condition = condition(status, "NodesCanPull");
        (condition.status.clone(), condition.reason.clone())
    };
    assert_eq!(
        condition_of(&status),
        ("False".to_owned(), "PullsFail".to_owned())
    );
    assert_eq!(plan(&status, &told(None), at(30)), status);
    let silent = plan(&status, &told(Some(Nodes::Silent)), at(35));
    assert_eq!(
        condition_of(&silent),
        ("Unknown".to_owned(), "PullEnded".to_owned())
    );
    assert_eq!(plan(&silent, &told(Some(Nodes::Silent)), at(36)), silent);
    let status = plan(&status, &told(Some(Nodes::CanPull)), at(40));
    assert_eq!(plan(&status, &told(Some(Nodes::Silent)), at(45)), status);
    assert_eq!(condition_of(&status), ("True".to_owned(), "Pulled".to_owned()));
    let lasts = |what: Option<&str>| Seen {
        pull_lasts: what.map(Into::into),
        ..seen()
    };
    let status = plan(&status, &lasts(Some("node-1 pulls")), at(50));
    assert_eq!(
        condition_of(&status),
        ("Unknown".to_owned(), "PullLasts".to_owned())
    );
    assert_eq!(condition(&status, "NodesCanPull").message, "node-1 pulls");
    let status = plan(&status, &lasts(None), at(60));
    assert_eq!(
        condition_of(&status),
        ("Unknown".to_owned(), "PullEnded".to_owned())
    );
    assert_eq!(plan(&status, &lasts(None), at(70)), status);
}

#[test]
fn pods_without_a_record_are_told_while_they_are_stuck() {
    let told = |what: Option<&str>| Seen {
        unrecorded: what.map(Into::into),
        ..seen()
    };
    let none = plan(&ImageMirrorStatus::default(), &told(None), at(20));
    assert!(condition_of(&none, ConditionType::OriginalsRecorded).is_none());
    let said = |status: &ImageMirrorStatus| {
        let condition = condition(status, "OriginalsRecorded");
        [&condition.status, &condition.reason].map(String::clone)
    };
    let status = plan(&none, &told(Some("Pod team/web")), at(30));
    assert_eq!(said(&status), ["False", "NoRecord"]);
    assert_eq!(condition(&status, "OriginalsRecorded").message, "Pod team/web");
    let status = plan(&status, &told(None), at(40));
    assert_eq!(said(&status), ["True", "Recorded"]);
}

#[test]
fn owners_that_fight_are_told_while_they_are_left_alone() {
    let left_alone = |count: u64| Seen {
        looping: Some(
            (0..count)
                .map(|number| (format!("Web.example.com team/{number}"), at(90)))
                .collect(),
        ),
        ..seen()
    };
    let none = plan(&ImageMirrorStatus::default(), &left_alone(0), at(20));
    assert!(condition_of(&none, ConditionType::OwnersLeftAlone).is_none());
    let status = plan(&none, &left_alone(120), at(30));
    let told = condition(&status, "OwnersLeftAlone");
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("True", "OwnerLoop")
    );
    assert!(
        told.message
            .contains("Web.example.com team/4 until 1970-01-01T00:01:30.000Z, and 115 more."),
        "{told:?}"
    );
    assert_eq!(status.owners_left_alone.len(), LOOPING);
    // Whatever a name is, little of it is told, and nothing that hides.
    let odd = Seen {
        looping: Some(vec![("\u{202e}é".repeat(100_000), at(90))]),
        ..seen()
    };
    let odd = plan(&none, &odd, at(30)).owners_left_alone.remove(0);
    assert!(odd.starts_with("\\u{202e}é") && odd.len() < 700, "{odd}");
    // A new leader does not know at first.
    let unknown = Seen {
        looping: None,
        ..seen()
    };
    assert_eq!(plan(&status, &unknown, at(40)), status);
    let status = plan(&status, &left_alone(0), at(50));
    let told = condition(&status, "OwnersLeftAlone");
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("False", "NoneFights")
    );
    assert!(status.owners_left_alone.is_empty());
}

#[test]
fn nothing_in_force_is_never_healthy() {
    let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
    let bad = Seen {
        health: None,
        ..seen()
    };
    let status = plan(&good, &bad, at(30));
    assert_eq!(health(&status).unwrap().state, State::Unknown);
    assert_eq!(plan(&status, &bad, at(40)), status);
}

#[test]
fn sweeps_are_told_with_their_version_unless_there_is_nothing_to_tell() {
    let end = |present, seconds: u64| SweepEnd {
        started_at: at(20),
        finished_at: at(20 + seconds),
        counts: Counts {
            present,
            ..Counts::default()
        },
        period: Duration::from_secs(10),
        bound: "spec.tags.refresh",
        tags_wait: false,
    };
    let swept = |tags| Seen {
        sweeps: [Some((tags, 77)), Some((end(0, 1), 77))],
        ..seen()
    };
    let status = plan(&ImageMirrorStatus::default(), &swept(end(3, 1)), at(21));
    assert_eq!(status.sweeps.digest, None);
    let tag = status.sweeps.tag.as_ref().unwrap();
    assert_eq!((tag.present, &*tag.through_resource_version), (3, "77"));
    assert_eq!(status.images, Some(3));
    assert_eq!(condition(&status, "SweepInTime").status, "True");
    let late = plan(&status, &swept(end(3, 11)), at(40));
    let in_time = condition(&late, "SweepInTime");
    assert_eq!(in_time.reason, "TooSlow");
    assert!(
        in_time
            .message
            .ends_with("requestsPerSecond or spec.tags.refresh."),
        "{}",
        in_time.message
    );
    // The sweep was in time, but what pull-through mirrors' tags stand for was not asked.
    let waiting = SweepEnd {
        tags_wait: true,
        ..end(3, 1)
    };
    let late = plan(&status, &swept(waiting), at(40));
    let in_time = condition(&late, "SweepInTime");
    assert_eq!(in_time.status, "False");
    assert!(
        in_time.message.contains("spec.tags.refresh: raise it"),
        "{}",
        in_time.message
    );
    assert!(
        !in_time.message.contains("requestsPerSecond"),
        "{}",
        in_time.message
    );
}
