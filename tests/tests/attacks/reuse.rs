//! Members reuse each other's results by their build key. Here Mallory tries to get the same key with other
//! inputs, or to store a wrong result under it.

use e2e::hostile::*;
use e2e::shared_box::{SharedBox, recipe};
use nix_derivation::StorePath;

use crate::twins::at;

/// A recipe that reads `input`, and fails if that says so.
fn reads(input: &StorePath) -> (StorePath, nix::derivation::BasicDerivation) {
    let script = format!(
        "read line < {}; echo read $line; [ $line != bad ]; echo $line > $out",
        input.to_absolute_path()
    );
    recipe(&path("reader.drv"), &[("out", &path("reader"))], &[input], &script)
}

async fn has(who: &mut Session, input: &StorePath, contents: &[u8]) {
    let nar = nar(&file(contents));
    who.upload(&at(input, &nar), &nar).await;
}

#[tokio::test]
async fn a_tampered_input_of_the_same_name_neither_meets_nor_poisons_anothers_build_key() {
    for mallory_first in [false, true] {
        let shared_box = SharedBox::of(&["alice", "mallory"]);
        let (mut alice, mut mallory) =
            (shared_box.session("alice").await, shared_box.session("mallory").await);
        let input = path("input");
        has(&mut alice, &input, b"true\n").await;
        has(&mut mallory, &input, b"forged\n").await;
        let order = if mallory_first { [true, false] } else { [false, true] };
        for is_mallory in order {
            let who = if is_mallory { &mut mallory } else { &mut alice };
            assert_eq!(who.build(reads(&input)).await.status, 0);
        }
        assert_eq!(alice.nar(&path("reader")).await, nar(&file(b"true\n")));
        assert_eq!(mallory.nar(&path("reader")).await, nar(&file(b"forged\n")));
        assert_eq!(shared_box.agent.count("build started"), 2);
    }
}

#[tokio::test]
async fn a_failure_with_a_tampered_input_is_not_anothers_failure() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let input = path("input");
    has(&mut alice, &input, b"true\n").await;
    has(&mut mallory, &input, b"bad\n").await;
    assert_ne!(mallory.build(reads(&input)).await.status, 0);
    let told = alice.build(reads(&input)).await;
    assert_eq!(told.status, 0, "{told:?}");
    assert_eq!(alice.nar(&path("reader")).await, nar(&file(b"true\n")));
}

#[tokio::test]
async fn another_script_for_the_same_paths_is_another_build() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let (drv, out) = (path("tool.drv"), path("tool"));
    let tampered = recipe(&drv, &[("out", &out)], &[], "echo forged > $out");
    assert_eq!(mallory.build(tampered).await.status, 0);
    assert_eq!(alice.build(recipe(&drv, &[("out", &out)], &[], "echo true > $out")).await.status, 0);
    assert_eq!(alice.nar(&out).await, nar(&file(b"true\n")));
    assert_eq!(mallory.nar(&out).await, nar(&file(b"forged\n")));
}

#[tokio::test]
async fn a_running_build_with_a_tampered_input_is_not_joined() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let input = path("input");
    has(&mut alice, &input, b"true\n").await;
    has(&mut mallory, &input, b"forged\n").await;
    let script = format!("read line < {}; sleep 1; echo $line > $out", input.to_absolute_path());
    let slow = || recipe(&path("slow.drv"), &[("out", &path("slow"))], &[&input], &script);
    mallory.start_build(slow()).await;
    shared_box.agent.wait_for("build started");
    alice.start_build(slow()).await;
    assert_eq!(alice.told().await.status, 0);
    assert_eq!(mallory.told().await.status, 0);
    assert_eq!(alice.nar(&path("slow")).await, nar(&file(b"true\n")));
    assert_eq!(mallory.nar(&path("slow")).await, nar(&file(b"forged\n")));
}
