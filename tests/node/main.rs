//! Tests with a whole node: Pods are really scheduled, pulled from real registries by containerd, and run.
//!
//! Everything lives on a private machine inside this one (namespaces of network, mounts and processes), for which
//! root is needed; `scripts/tools` builds the programs. Where it cannot be the tests are skipped and say so; with
//! `CI=true` that is a failure.
#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "test code outside of #[test] functions, for which clippy.toml has no allowance"
)]

mod demo;
mod hangs;
mod load;
mod mirror;
mod modes;
mod outage;
mod parts;
mod presence;
mod rescue;
mod ring;
#[allow(dead_code, reason = "each ring uses a part of it")]
#[path = "../support/mod.rs"]
mod shared;
mod support;

use std::process::ExitCode;

use libtest_mimic::Arguments;

use shared::{
    runner::{State, Test, runs, skipped, tests, trials},
    tools::Tools,
};
use support::{
    machine,
    node::{self, Node},
    object_store,
};

/// Tests that run side by side; the long ones first, because tests start in this order.
const TESTS: &[Test<Node>] = tests![
    hangs::a_pull_of_three_minutes_that_ends_well_is_left_alone,
    mirror::pods_of_two_upstreams_outlive_a_mirror_that_refuses_connections,
    mirror::pods_of_two_upstreams_outlive_a_mirror_in_a_black_hole,
    mirror::a_mirror_that_loses_packets_stays_in_use,
    mirror::a_mirror_in_s3_may_have_a_name_that_only_nodes_know,
    presence::a_mirror_that_comes_back_empty_is_proven_anew,
    presence::a_deleted_image_is_not_rewritten_past_the_freshness_bound,
    rescue::stuck_pods_are_let_go_by_a_mirror_that_is_off_or_deleted,
    rescue::where_mirror_and_upstream_are_dead_each_pod_is_patched_once,
    rescue::pods_stuck_on_a_dead_upstream_move_to_the_mirror,
    rescue::after_a_moment_without_the_mirror_all_pods_run_though_upstream_refuses,
    rescue::a_pod_whose_mirror_answers_another_digest_runs_from_upstream,
    rescue::a_pod_whose_image_the_mirror_deleted_runs_from_upstream,
    rescue::a_pod_whose_pull_secret_was_revoked_runs_from_upstream,
    presence::it_is_told_where_nodes_cannot_pull,
    modes::each_mode_does_what_it_says,
    mirror::pods_outlive_a_mirror_without_the_chart_too,
    ring::a_pod_waits_until_its_registry_is_back,
    ring::a_pod_waits_until_the_black_hole_is_gone,
    ring::a_pod_of_a_missing_image_waits,
    ring::a_pod_needs_the_registrys_password,
    ring::a_pod_reaches_the_api_server,
    ring::a_service_leads_to_its_pod,
    ring::pods_know_registries_by_name,
    ring::our_own_image_runs,
    load::no_review_fails_whatever_is_replaced,
    parts::a_killed_companion_is_followed_by_the_other,
    parts::a_paused_companion_writes_nothing_when_it_goes_on,
    parts::replicas_cut_from_the_api_server_believe_their_own_eyes_only,
    parts::a_broken_certificate_keeps_the_old_pair,
];

/// Tests that take away what all others need, or measure how long Pods wait, which share what kubelet pulls in a second;
/// they run after the others, one by one.
const ALONE: &[Test<Node>] = tests![
    rescue::pods_sent_to_a_mirror_that_died_run_from_upstream,
    hangs::a_pull_that_hangs_is_told_and_its_pod_runs_once_it_fails,
    hangs::who_waits_behind_a_pull_that_hangs_is_told_and_left_alone,
    hangs::a_turn_that_comes_late_restarts_nothing,
    outage::a_restarted_api_server_finds_kagami_at_work,
    outage::an_image_that_replicas_hear_nothing_of_is_not_proven_by_sweeps,
    // The last: it is about all of them.
    rescue::nothing_that_ran_was_restarted_for_its_image,
];

fn main() -> ExitCode {
    if let Some(step) = demo::wanted() {
        return demo::show(step);
    }
    let mut arguments = Arguments::from_args();
    // Tests mostly wait, one of them for three minutes.
    arguments.test_threads = arguments.test_threads.or(Some(5));
    install_cryptography();
    let state = State::default();
    let [side_by_side, alone] = [TESTS, ALONE].map(|tests| trials(tests, &state, |node, _| node));
    let any = |counts: fn(&str) -> bool| {
        [&side_by_side, &alone]
            .into_iter()
            .any(|trials| runs(&arguments, trials, counts))
    };
    if any(|_| true) {
        let tools =
            machine::check().and_then(|()| Tools::find()?.with(node::PROGRAMS)?.with(object_store::PROGRAMS));
        let cgroup = machine::cgroup();
        if let Err(reason) = &tools {
            if skipped("with a node", reason) {
                return ExitCode::FAILURE;
            }
        } else if cgroup.is_none() {
            return machine::enter();
        }
        // On this thread, because what it starts ends with the thread.
        let by_chart = any(|name| !name.starts_with("ring::"));
        let node = tools.map(|tools| {
            let node = Node::start(tools, &cgroup.unwrap());
            if by_chart {
                node.install_kagami();
            }
            node
        });
        state.set(node).unwrap();
    }
    let first = libtest_mimic::run(&arguments, side_by_side);
    // On this thread, because what they start again must not end with a thread of theirs.
    arguments.test_threads = Some(1);
    let then = libtest_mimic::run(&arguments, alone);
    if first.has_failed() {
        first.exit_code()
    } else {
        then.exit_code()
    }
}

fn install_cryptography() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .unwrap();
}
