//! Stock Nix clients against a real agent: every rule holds for every version people have.
//!
//! Builds run in the namespace sandbox, so that this needs no KVM; the netbooted box has tests of its own.

mod building;
mod copying;
mod front_door;
mod logs;
mod privacy;

use e2e::agent::Agent;
use e2e::clients::{Nix, Version};
use e2e::keys::Key;

/// A box with one member, and that member's machine.
struct Alice {
    agent: Agent,
    key: Key,
    nix: Nix,
}

impl Alice {
    fn with(version: Version) -> Self {
        let key = Key::new("alice");
        let agent = Agent::start(&[("alice", &key)]);
        let nix = Nix::new(version, &agent, &key);
        Self { agent, key, nix }
    }

    /// Another machine with the same key and version, and an empty store.
    fn other_machine(&self) -> Nix {
        Nix::new(self.nix.version, &self.agent, &self.key)
    }
}

/// Makes a test of each rule for each version, so that a report reads `nix_2_8::rule`.
macro_rules! for_every_version {
    ($($file:ident::$rule:ident,)*) => {
        for_every_version!(nix_2_8 V2_8 $($file::$rule,)*);
        for_every_version!(nix_2_26 V2_26 $($file::$rule,)*);
        for_every_version!(nix_2_34 V2_34 $($file::$rule,)*);
    };
    ($module:ident $version:ident $($file:ident::$rule:ident,)*) => {
        mod $module {
            $(
                #[test]
                fn $rule() {
                    crate::$file::$rule(e2e::clients::Version::$version);
                }
            )*
        }
    };
}

for_every_version! {
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
    building::clients_that_ask_at_once_share_one_build,
    logs::a_log_line_arrives_while_the_build_runs_at_the_box,
    logs::a_log_line_arrives_while_the_build_runs_through_builders,
    logs::a_second_client_joins_a_running_build_and_sees_its_log,
    logs::a_failing_builder_shows_its_status_and_last_lines,
    privacy::what_one_member_built_from_a_bare_recipe_does_not_exist_for_another,
    privacy::what_one_member_uploaded_unchecked_does_not_exist_for_another,
    front_door::a_login_without_a_command_is_told_what_works,
    front_door::any_other_command_is_refused_in_one_line,
    front_door::a_key_that_is_not_in_the_roster_gets_nothing,
}
