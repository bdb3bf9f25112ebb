//! Tests against a real API server: etcd, kube-apiserver and kube-controller-manager, a real registry as the
//! mirror, and `kagami serve` as users run it. `scripts/tools` builds the programs.
//!
//! One cluster serves all tests of a run; each test has a namespace, and mostly a Kagami, of its own. Where the
//! programs are missing the tests are skipped and say so; with `CI=true` that is a failure.
#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "test code outside of #[test] functions, for which clippy.toml has no allowance"
)]

mod asked;
mod certificates;
mod chart;
mod clocks;
mod clouds;
mod cluster;
mod companion;
mod copies;
mod definitions;
mod faults;
mod forward;
mod guards;
mod manifests;
mod modes;
mod neighbours;
mod originals;
mod owners;
mod places;
mod pull_secrets;
mod pulls;
mod report;
mod rescue;
mod rights;
mod scope;
mod secrets;
#[allow(dead_code, reason = "each ring uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod upgrade;
mod volumes;

use std::{env, process::ExitCode};

use libtest_mimic::Arguments;

use support::{
    cluster::Cluster,
    runner::{State, Test, runs, skipped, tests, trials},
    tools::Tools,
};

/// Every test; the long one first, because tests start in this order.
const TESTS: &[Test<Cluster>] = tests![
    // What takes longest begins first.
    volumes::without_the_right_it_is_told_and_not_tried_again_and_again,
    copies::what_enforcing_namespaces_use_is_copied_and_then_rewritten,
    forward::what_admission_would_keep_stays,
    rescue::what_a_policy_refuses_is_told_and_not_tried_again_and_again,
    copies::a_source_whose_secret_is_missing_is_not_read_as_nobody,
    rescue::what_is_not_stuck_on_a_mirror_of_ours_is_left_alone,
    rescue::init_containers_and_sidecars_go_back_by_their_rules,
    copies::a_mirror_that_takes_no_copies_is_told_and_serves_what_it_has,
    faults::connections_idle_for_95_seconds_are_still_usable,
    clocks::what_ended_while_all_slept_is_renewed_at_once,
    clocks::a_clock_set_back_and_forth_renews_each_once,
    companion::a_paused_leader_never_writes_again,
    companion::a_second_replica_takes_over_after_a_kill,
    companion::a_restarted_api_server_finds_the_companion_at_work,
    companion::what_is_known_can_be_read_with_kubectl,
    companion::a_pod_that_is_done_uses_nothing,
    companion::a_bad_certificate_is_told_in_condition_and_event,
    companion::health_is_written_once_for_each_change,
    companion::certificates_are_made_and_renewed_in_steps,
    companion::an_older_definition_is_told_until_it_is_upgraded,
    certificates::a_certificate_that_nobody_can_renew_is_told,
    certificates::what_cert_manager_left_behind_is_replaced_in_steps,
    certificates::the_authority_of_an_earlier_version_stays_in_use,
    definitions::definitions_deleted_and_made_again_are_followed,
    definitions::a_field_of_a_newer_definition_does_what_its_part_says,
    definitions::the_api_server_refuses_in_the_words_of_the_program,
    companion::a_failing_upstream_is_told_to_the_webhooks,
    companion::what_came_by_other_hands_is_looked_at_before_a_sweep_covers_it,
    companion::a_deleted_image_comes_back_while_pods_use_it,
    companion::an_image_of_next_year_is_proven_again_by_the_next_leader,
    companion::a_deleted_mirror_holds_up_no_other,
    companion::a_mirror_made_again_under_its_name_inherits_no_proof,
    owners::listed_owners_are_left_alone_at_once,
    owners::operators_that_insist_are_left_alone_whoever_leads,
    originals::a_copy_that_lost_its_record_gets_that_of_another_pod_of_its_namespace,
    rescue::each_of_a_hundred_pods_is_turned_once_though_the_leader_dies,
    rescue::a_stuck_pod_goes_back_at_once_and_once_only,
    rescue::pods_that_stay_stuck_are_told_of,
    rescue::events_hold_up_no_turn,
    rescue::without_images_nodes_and_secrets_a_stuck_pod_goes_back,
    rescue::a_pod_that_somebody_changed_in_between_is_left_alone,
    rescue::by_its_policy_a_mirror_is_told_of_or_left_alone,
    rescue::a_pull_that_lasts_is_told_and_nothing_is_done,
    pulls::a_failed_pull_asks_for_one_look_and_refused_credentials_for_none,
    pulls::nodes_that_cannot_pull_are_told_by_two_of_them,
    rescue::a_pod_is_turned_just_after_a_failure_alone,
    rescue::the_api_server_gives_up_a_patch_whose_time_is_over,
    rescue::the_brake_holds_every_pod_as_it_is,
    rescue::a_mirror_that_was_deleted_lets_its_pods_go_whoever_leads,
    rescue::a_mirror_that_is_off_or_deselected_lets_its_pods_go,
    forward::a_pod_stuck_on_upstream_goes_forward_once_and_back_once,
    forward::without_its_registry_listed_nothing_goes_forward_and_the_mirror_says_so,
    forward::with_both_dead_each_pod_is_turned_twice_at_most,
    forward::after_a_blip_of_the_mirror_no_pod_stays_stuck_where_upstream_refuses,
    forward::to_a_registry_that_fails_pods_go_back_from_a_dead_mirror_alone,
    volumes::a_pod_stuck_on_a_volume_is_evicted_where_nothing_is_lost,
    volumes::without_leave_a_pod_stuck_on_a_volume_is_only_told,
    copies::a_tag_that_moves_upstream_is_followed_and_what_it_meant_can_be_pulled,
    copies::sync_brings_what_running_pods_use,
    copies::sync_reads_upstream_with_no_login_of_the_person,
    pull_secrets::a_login_stands_where_its_mirror_serves_and_nowhere_else,
    pull_secrets::what_stands_there_already_is_somebodys_or_kagamis,
    pull_secrets::without_the_flag_none_is_placed,
    pull_secrets::the_companion_is_held_to_its_pull_secrets,
    secrets::a_secret_of_somebody_else_is_left_alone,
    secrets::a_secret_that_changes_voids_and_rewrites_nothing,
    secrets::images_of_a_mirror_that_is_out_of_force_stay,
    chart::install_upgrade_and_removal,
    clouds::gke_admits_pods_of_the_systems_priority_by_the_charts_quota,
    clouds::openshift_chooses_users_and_groups,
    clouds::aks_is_told_to_leave_the_selectors_alone,
    clouds::on_the_network_of_nodes_no_two_pods_want_one_port,
    clouds::windows_nodes_get_no_pod,
    chart::every_set_of_values_is_valid,
    chart::pods_may_go_forward_to_the_mirrors_that_the_chart_makes,
    chart::the_values_of_the_install_pages_are_valid,
    chart::wrong_values_are_refused_with_their_place,
    chart::the_programs_take_the_arguments_of_every_set_of_values,
    chart::plain_manifests_are_what_the_chart_makes,
    chart::a_default_mode_takes_in_unlabelled_namespaces_only,
    rights::each_account_has_its_rights_and_no_other,
    rights::without_their_values_the_companion_writes_no_certificates_and_no_pods,
    rights::pull_secrets_need_a_right_of_their_own,
    rights::viewers_of_a_namespace_read_what_kagami_knows,
    rights::an_unknown_mode_is_refused_on_a_namespace,
    rights::the_companion_is_held_to_its_secrets,
    guards::the_companion_is_held_to_recorded_originals,
    guards::the_companion_sends_pods_to_listed_registries_alone,
    guards::a_policy_that_costs_too_much_refuses,
    guards::the_companion_evicts_by_the_rules_alone,
    places::kubectl_run_gets_the_mirrors_image,
    places::init_containers_and_sidecars_are_rewritten,
    places::image_volumes_are_rewritten,
    places::every_form_of_a_reference_is_kept,
    places::generated_names_are_rewritten,
    places::debug_containers_are_rewritten_once,
    places::pods_of_a_deployment_are_rewritten,
    places::server_side_dry_run_shows_the_rewrite,
    places::a_sidecar_injected_later_is_rewritten,
    places::a_placeholder_is_left_to_its_injector,
    places::a_sidecar_injected_before_is_rewritten_in_the_first_round,
    modes::warn_mode_warns_and_changes_nothing,
    modes::audit_mode_only_writes_the_audit_log,
    modes::a_pods_label_weakens_its_namespace,
    modes::a_pods_label_never_strengthens_its_namespace,
    scope::an_unlabelled_namespace_is_never_asked_about,
    scope::system_namespaces_are_never_asked_about,
    scope::mirror_pods_of_nodes_are_left_alone,
    faults::a_missing_image_stays_upstream,
    faults::a_dead_mirror_keeps_pods_upstream_until_it_is_back,
    faults::a_dead_webhook_does_not_stop_pods,
    faults::a_hanging_webhook_delays_pods_by_its_timeout_only,
    cluster::known_images_cost_no_request_and_unknown_ones_one,
    cluster::without_a_companion_only_own_probes_count,
    cluster::a_pull_through_mirror_is_left_alone_while_the_state_is_stale,
    cluster::a_proof_older_than_the_last_outage_is_none,
    cluster::a_sweep_counts_once_all_images_it_covers_have_arrived,
    cluster::a_broken_image_switches_no_mirror_off,
    cluster::a_mirror_with_a_fault_stays_as_it_was,
    cluster::the_brake_keeps_every_image_as_it_is_written,
    cluster::a_mirror_serves_the_namespaces_that_it_selects,
    cluster::a_mirror_stands_in_while_its_upstream_fails,
    cluster::a_restarted_api_server_is_followed_again,
    asked::explain_tells_what_is_shared_and_what_is_seen_from_here,
    asked::explain_looks_itself_while_the_state_is_stale,
    asked::few_rights_are_enough_for_an_explanation,
    asked::resolve_answers_whatever_the_cluster_does,
    asked::review_answers_as_the_namespaces_labels_say,
    asked::what_review_writes_is_read_as_what_it_read,
    asked::without_a_cluster_one_line_says_so,
    report::audit_log_and_report_tell_the_same,
    report::stuck_pods_are_told_with_what_would_help,
    report::every_namespace_is_told_by_its_mode,
    report::who_may_not_list_pods_is_told,
    report::a_silent_companion_is_told,
    report::what_policies_refuse_is_told,
    report::who_may_not_read_events_is_told,
];

/// What `scripts/upgrade` runs beside a build of an earlier version.
const UPGRADE: &[Test<Cluster>] = tests![upgrade::there_and_back_and_here_again];

/// What `scripts/manifests-of-others` runs over a folder.
const MANIFESTS: &[Test<Cluster>] = tests![manifests::of_others_mean_the_same_afterwards];

/// What `scripts/neighbours` runs beside the programs of others.
const NEIGHBOURS: &[Test<Cluster>] = tests![
    neighbours::kyverno,
    neighbours::admission_policies,
    neighbours::gatekeeper,
    neighbours::flux,
    neighbours::cert_manager,
];

/// The API servers of this run.
#[derive(Debug)]
struct Clusters {
    shared: Cluster,
    /// One with Kagami's resources, for the tests about them: every Kagami there sees all of them.
    resources: Option<Cluster>,
}

impl Clusters {
    fn start(tools: Tools, resources: bool) -> Self {
        Self {
            resources: resources.then(|| {
                let cluster = Cluster::start(tools.clone());
                support::reader::install(&cluster);
                cluster
            }),
            shared: Cluster::start(tools),
        }
    }

    fn of(&self, test: &str) -> &Cluster {
        match &self.resources {
            Some(cluster) if is_about_resources(test) => cluster,
            _ => &self.shared,
        }
    }
}

fn is_about_resources(test: &str) -> bool {
    ["cluster::", "asked::", "report::"]
        .iter()
        .any(|module| test.starts_with(module))
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Tests mostly wait: two thirds of two cores are idle while six of them run.
    arguments.test_threads = arguments.test_threads.or(Some(10));
    rustls::crypto::ring::default_provider()
        .install_default()
        .unwrap();

    let state = State::default();
    let mut tests = TESTS.to_vec();
    if env::var_os(upgrade::FORMER).is_some() {
        // It needs an earlier version, which nobody builds but the script for it.
        tests.extend_from_slice(UPGRADE);
    }
    if env::var_os(manifests::FOLDER).is_some() {
        tests.extend_from_slice(MANIFESTS);
    }
    if env::var_os(neighbours::LINES).is_some() {
        tests.extend_from_slice(NEIGHBOURS);
    }
    let trials = trials(&tests, &state, Clusters::of);
    if runs(&arguments, &trials, |_| true) {
        let tools = Tools::find();
        if let Err(reason) = &tools
            && skipped("against a real API server", reason)
        {
            return ExitCode::FAILURE;
        }
        // On this thread, because what it starts ends with the thread.
        let resources = runs(&arguments, &trials, is_about_resources);
        state
            .set(tools.map(|tools| Clusters::start(tools, resources)))
            .unwrap();
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
