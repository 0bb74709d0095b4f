//! Stock Nix clients against a real agent: every rule is tested with every supported version, over both
//! protocols.
//!
//! A few rules are about operations that a stock client cannot request over `ssh://`. There the test shows
//! that the client itself refuses (see [`Alice::refuses_by_itself`]), so that the test fails if a new version
//! can.
//!
//! Builds run in the namespace sandbox, so these tests need no KVM; the netbooted box has tests of its own.

mod building;
mod commands;
mod configuring;
mod copying;
mod derivations;
mod derivers;
mod drained;
mod following;
mod forged;
mod front_door;
mod limits;
mod logs;
mod own_paths;
mod privacy;
mod reuse;
mod settings;
mod strings;
mod substitution;
mod tickets;

use std::process::Command;

use e2e::agent::Agent;
use e2e::clients::{Nix, Stock, UNSUPPORTED_BY_CLIENT};
use e2e::keys::Key;
use e2e::process::Transcript;

/// A box with one member, and that member's machine.
struct Alice {
    agent: Agent,
    key: Key,
    nix: Nix,
}

impl Alice {
    fn with(stock: Stock) -> Self {
        let key = Key::new("alice");
        let agent = Agent::start(&[("alice", &key)]);
        let nix = Nix::over(stock, &agent, &key);
        Self { agent, key, nix }
    }

    /// Another machine with the same key, version and protocol, and an empty store.
    fn other_machine(&self) -> Nix {
        Nix::over(self.nix.stock(), &self.agent, &self.key)
    }

    /// Checks that stock Nix refused this on the client's side, so that the box got no request.
    fn refuses_by_itself(&self, said: Transcript) {
        println!("nothing to test: {:?} cannot ask for this; it says so itself:\n{said}", self.nix.stock());
        said.failed().says(&[UNSUPPORTED_BY_CLIENT]);
    }

    /// All ways in which this client can request a build.
    fn ways_to_build(&self, expression: &str) -> Vec<Command> {
        let at_box = self.nix.stock().builds_at_the_box().then(|| self.nix.build_at_box(expression));
        at_box.into_iter().chain([self.nix.build_through_builders(expression)]).collect()
    }

    /// Waits for the end of a session of either protocol.
    fn wait_for_the_end_of_a_session(&self) {
        self.agent.wait_for_event("the end of a session", |event| {
            event["message"].as_str().is_some_and(|text| text.ends_with("session ended"))
        });
    }
}

/// Makes a test of each rule for each version and protocol, so that a report has names like
/// `nix_2_8::ssh_ng::rule`.
macro_rules! for_every_client {
    ($($file:ident::$rule:ident,)*) => {
        for_every_client!(@version nix_2_8 V2_8 [$($file::$rule,)*]);
        for_every_client!(@version nix_2_26 V2_26 [$($file::$rule,)*]);
        for_every_client!(@version nix_2_34 V2_34 [$($file::$rule,)*]);
    };
    (@version $module:ident $version:ident $rules:tt) => {
        mod $module {
            for_every_client!(@protocol ssh_ng SshNg $version $rules);
            for_every_client!(@protocol ssh Ssh $version $rules);
        }
    };
    (@protocol $module:ident $protocol:ident $version:ident [$($file:ident::$rule:ident,)*]) => {
        mod $module {
            use e2e::clients::{Protocol, Stock, Version};
            const STOCK: Stock = Stock { version: Version::$version, protocol: Protocol::$protocol };
            $(
                #[test]
                fn $rule() {
                    crate::$file::$rule(STOCK);
                }
            )*
        }
    };
}

for_every_client! {
    commands::a_member_lists_and_cancels_the_requests_of_that_member_alone,
    configuring::what_the_box_prints_is_a_configuration_that_works,
    configuring::the_modules_that_the_box_prints_evaluate,
    copying::the_store_answers_who_it_is,
    copying::a_copied_tree_comes_back_byte_for_byte,
    copying::a_closure_is_copied_with_its_references,
    copying::path_info_says_what_the_client_knows_about_the_same_path,
    building::a_chain_of_derivations_builds_at_the_box_and_its_result_is_read_back,
    building::a_chain_of_derivations_builds_through_builders,
    building::sources_of_the_client_reach_the_builder,
    building::a_derivation_for_another_system_is_refused_naming_both,
    building::a_fixed_output_with_another_hash_is_refused,
    building::a_fixed_output_with_the_right_hash_is_accepted,
    building::what_does_not_need_a_failed_build_is_built_all_the_same,
    building::clients_that_ask_at_once_share_one_build,
    building::a_builder_with_forty_slots_takes_forty_builds_of_one_member_at_once,
    building::a_build_that_waits_for_a_slot_says_why,
    building::what_a_build_used_is_charged_to_its_member,
    derivations::a_floating_chain_gets_the_paths_that_the_client_gives_it_at_home,
    derivations::what_resolves_to_something_built_is_not_built_again,
    derivations::an_input_addressed_derivation_may_depend_on_a_floating_one,
    derivations::a_realisation_is_read_back_from_the_box,
    derivations::outputs_that_refer_to_each_other_are_refused,
    derivations::fixed_outputs_of_every_kind_have_the_hash_that_the_client_computes,
    derivations::the_box_fetches_what_the_client_would_fetch,
    derivations::the_box_fetches_nothing_from_its_own_network,
    derivations::a_builder_is_shown_the_closures_that_it_asks_for,
    derivations::structured_attributes_describe_the_closures_that_are_asked_for,
    derivations::an_environment_of_packages_is_what_the_client_makes_of_them,
    derivations::a_channel_is_unpacked_whatever_it_is_compressed_with,
    derivers::a_result_of_builders_knows_its_derivation,
    derivers::each_member_reads_their_own_derivation,
    derivers::a_signature_that_a_member_adds_is_theirs_alone,
    derivers::an_upload_brings_its_deriver_and_signatures_along,
    strings::bytes_that_are_no_text_reach_the_builder,
    strings::structured_attributes_are_written_as_at_home,
    logs::a_log_line_arrives_while_the_build_runs_at_the_box,
    logs::a_log_line_arrives_while_the_build_runs_through_builders,
    logs::a_second_client_joins_a_running_build_and_sees_its_log,
    logs::a_failing_builder_shows_its_status_and_last_lines,
    logs::long_lines_are_cut_between_characters_and_messages_nowhere,
    logs::a_build_looks_as_with_a_stock_daemon,
    logs::a_failing_build_looks_as_with_a_stock_daemon,
    logs::the_activities_of_a_build_are_those_of_a_stock_daemon,
    privacy::what_one_member_built_from_a_bare_recipe_does_not_exist_for_another,
    privacy::what_one_member_uploaded_unchecked_does_not_exist_for_another,
    own_paths::a_member_throws_away_what_is_theirs_and_nothing_else,
    own_paths::two_members_who_share_use_each_others_paths_until_one_of_them_stops,
    forged::a_forged_output_is_not_the_answer_to_anybody_elses_build,
    forged::a_forged_output_does_not_replace_what_was_built,
    forged::a_forged_dependency_reaches_only_its_forger,
    forged::what_mallory_built_on_a_forged_dependency_is_never_reused,
    forged::a_lie_about_a_floating_output_is_not_the_answer_to_anybody_elses_build,
    reuse::the_second_members_equal_build_does_not_run,
    reuse::what_was_built_from_whole_derivations_is_signed_and_valid_for_everybody,
    reuse::a_failure_is_told_again_to_another_member,
    reuse::another_member_joins_a_running_build_which_goes_on_when_the_first_leaves,
    reuse::a_rebuild_that_differs_is_reported_in_nixs_words,
    reuse::a_log_can_be_read_afterwards_by_those_who_may_see_the_build,
    settings::variables_of_ssh_decide_about_the_builds_of_their_client,
    settings::a_variable_that_is_no_setting_is_refused_by_name_before_anything_is_built,
    settings::a_derivation_can_bring_its_own_settings,
    substitution::what_a_cache_has_is_not_uploaded,
    substitution::inputs_that_a_cache_has_are_not_uploaded_for_a_build,
    substitution::what_a_cache_has_is_not_built,
    substitution::through_builders_only_the_newer_protocol_fetches_outputs,
    substitution::a_client_or_a_derivation_that_wants_nothing_substituted_gets_a_build,
    substitution::what_nobody_trusted_signed_is_refused_in_one_line_and_uploaded,
    substitution::what_was_fetched_is_copied_with_signatures_checked,
    drained::builders_pass_over_a_drained_box_and_others_are_told_why,
    drained::what_runs_ends_well_and_what_is_there_can_be_fetched_from_a_drained_box,
    following::a_member_follows_a_build_of_their_own_and_nobody_elses,
    following::a_watched_build_that_is_built_ends_the_watch,
    limits::a_limit_of_the_roster_is_named_with_who_set_it_and_a_higher_one_counts_at_once,
    tickets::a_friend_builds_with_a_ticket_and_gets_the_result,
    tickets::a_friend_builds_through_builders_until_the_ticket_is_revoked,
    tickets::a_ticket_for_reading_copies_what_everybody_sees_and_builds_nothing,
    front_door::a_login_without_a_command_is_told_what_works,
    front_door::any_other_command_is_refused_in_one_line,
    front_door::a_key_that_is_not_in_the_roster_gets_nothing,
}
