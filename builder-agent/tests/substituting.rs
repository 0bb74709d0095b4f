//! Substitution from caches that lie, break or stall, and the members' view of it. All in one process; the
//! caches of stock Nix are in `tests/tests/clients/substitution.rs`.

mod common;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use common::cache::{Cache, as_it_is, fetching_agent, key, narinfo_of};
use common::client::{is_valid, wait_for_start};
use common::http::{ENDLESS, ok, silent, status};
use common::scripted::{Scripted, TestClient, info_of, path, until};
use daemon::SessionOptions;
use nix_derivation::StorePath;
use serde_json::json;
use store::Provenance;
use store::signing::SecretKey;
use wire::client::{End, encode_file_nar};
use wire::worker::Request;

/// Sends `EnsurePath`; returns its error.
async fn ensure(client: &mut TestClient, path: &StorePath) -> Result<(), String> {
    client.request(&Request::EnsurePath { path: path.clone() }).await.expect("sent");
    match client.log().await.expect("an answer").1 {
        End::Last => {
            client.u64().await.expect("1");
            Ok(())
        }
        End::Error(message) => Err(message),
        End::Read(_) => panic!("nothing to read"),
    }
}

#[tokio::test]
async fn a_signed_path_is_fetched_with_its_references_and_everybody_sees_it() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let lib = cache.publish("lib", "library", &[], Some(&key), as_it_is);
    let app = cache.publish("app", "application", &[lib.clone(), path("app")], Some(&key), as_it_is);
    let scripted = fetching_agent(address, &key, "");
    let mut alice = scripted.session("alice").await;
    assert_eq!(ensure(&mut alice, &app).await, Ok(()));
    let mut bob = scripted.session("bob").await;
    for path in [&lib, &app] {
        assert!(is_valid(&mut alice, path).await && is_valid(&mut bob, path).await, "{path:?}");
    }
    // A valid path is not requested again.
    let asked = cache.all_asked();
    assert_eq!(ensure(&mut bob, &app).await, Ok(()));
    assert_eq!(cache.all_asked(), asked);
    // Who asked first is charged for the files, and nobody else.
    let bytes = encode_file_nar(b"library", false).len() + encode_file_nar(b"application", false).len();
    assert_eq!((charged(&scripted, "alice"), charged(&scripted, "bob")), (bytes as u64, 0));
}

/// Publishes so many paths whose files never come: of their answers the cache sends the heads and nothing more. So each of
/// these downloads lasts until it is given up.
fn publish_slow(cache: &Cache, key: &SecretKey, count: usize) -> Vec<StorePath> {
    let publish = |n| {
        let path = cache.publish(&format!("slow-{n}"), "slow", &[], Some(key), as_it_is);
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 120\r\n\r\n";
        cache.put(&format!("nar/slow-{n}.nar"), head.into());
        path
    };
    (0..count).map(publish).collect()
}

/// How many of the paths of [`publish_slow`] are on their way.
fn slow_begun(cache: &Cache) -> usize {
    (0..100).filter(|n| cache.asked(&format!("nar/slow-{n}.nar")) > 0).count()
}

/// An agent that fetches from this cache and waits for it.
fn patient_agent(address: SocketAddr, key: &SecretKey, more: &str) -> Scripted {
    Scripted::open(&format!(
        "substituters = [\"http://{address}\"]\ntrusted-public-keys = [\"{}\"]\nfetch.allow-private = true\n\
         fetch.stall-seconds = 600\n{more}",
        key.public()
    ))
}

/// Asks for the path, in a session whose client waits for the answer.
async fn asking(mut client: TestClient, path: &StorePath) -> TestClient {
    client.request(&Request::EnsurePath { path: path.clone() }).await.expect("sent");
    client
}

/// The bytes of downloads that this member is charged for.
fn charged(scripted: &Scripted, member: &str) -> u64 {
    let used = scripted.agent.ledger.used_this_month(&ledger::Principal::member(member));
    used.get(ledger::Resource::DownloadBytes)
}

#[tokio::test]
async fn a_member_who_waits_for_many_slow_downloads_leaves_slots_for_others() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let slow = publish_slow(&cache, &key, 24);
    let quick = cache.publish("quick", "quick", &[], Some(&key), as_it_is);
    let scripted = patient_agent(address, &key, "");
    let mut alices = Vec::new();
    for path in &slow {
        alices.push(asking(scripted.session("alice").await, path).await);
    }
    until("the downloads of alice", || slow_begun(&cache) >= 8).await;
    let mut bob = scripted.session("bob").await;
    assert_eq!(ensure(&mut bob, &quick).await, Ok(()));
    assert_eq!(slow_begun(&cache), 8, "half of the box's downloads");
}

#[tokio::test]
async fn who_joins_a_download_that_waits_for_its_turn_does_not_wait_behind_the_others_of_who_asked_first() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let slow = publish_slow(&cache, &key, 8);
    let ninth = cache.publish("ninth", "ninth", &[], Some(&key), as_it_is);
    let scripted = patient_agent(address, &key, "");
    let mut alices = Vec::new();
    for path in &slow {
        alices.push(asking(scripted.session("alice").await, path).await);
    }
    until("the downloads of alice", || slow_begun(&cache) == 8).await;
    let mut alice = asking(scripted.session("alice").await, &ninth).await;
    wait_for_start(&mut alice).await;
    let mut bob = scripted.session("bob").await;
    assert_eq!(ensure(&mut bob, &ninth).await, Ok(()));
    assert!(matches!(alice.log().await.expect("an answer").1, End::Last), "she has it, too");
    assert_eq!((cache.asked("nar/ninth.nar"), slow_begun(&cache)), (1, 8));
    // With whose slot it began, pays.
    let bytes = encode_file_nar(b"ninth", false).len() as u64;
    assert_eq!(charged(&scripted, "bob"), bytes);
    assert!(charged(&scripted, "alice") < bytes);
}

#[tokio::test]
async fn each_lie_of_a_cache_is_refused_in_one_line_and_the_box_goes_on() {
    let (cache, address) = Cache::open().await;
    let (key, other) = (key(), SecretKey::generate("other-1").expect("a key"));
    let impostor = SecretKey::generate("cache.example.org-1").expect("another key of the same name");
    let unsigned = cache.publish("unsigned", "x", &[], None, as_it_is);
    let unknown = cache.publish("unknown", "x", &[], Some(&other), as_it_is);
    let forged = cache.publish("forged", "x", &[], Some(&impostor), as_it_is);
    // The signature covers the field that is changed here.
    let references = cache.publish("references", "x", &[], Some(&key), |info| {
        info.replace("References: ", &format!("References: {}", path("unsigned").to_basename()))
    });
    let swapped = cache.publish("swapped", "x", &[], Some(&key), as_it_is);
    cache.put("nar/swapped.nar", ok(encode_file_nar(b"y", false)));
    let no_file_hash = cache.publish("no-file-hash", "x", &[], Some(&key), |info| {
        info.lines().filter(|line| !line.starts_with("File")).map(|line| format!("{line}\n")).collect()
    });
    cache.put("nar/no-file-hash.nar", ok(encode_file_nar(b"y", false)));
    let cut = cache.publish("cut", "x", &[], Some(&key), as_it_is);
    cache.put("nar/cut.nar", ok(&encode_file_nar(b"x", false)[..40]));
    let garbage = cache.publish("garbage", "x", &[], Some(&key), as_it_is);
    cache.put("nar/garbage.nar", ok("this is no NAR"));
    let endless = cache.publish("endless", "x", &[], Some(&key), as_it_is);
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".as_slice();
    cache.put("nar/endless.nar", [head, &encode_file_nar(b"x", false), ENDLESS].concat());
    let gone = cache.publish("gone", "x", &[], Some(&key), as_it_is);
    cache.put("nar/gone.nar", status(404));
    let moved = cache.publish("moved", "x", &[], Some(&key), as_it_is);
    cache
        .put("nar/moved.nar", b"HTTP/1.1 302 X\r\nLocation: moved.nar\r\nContent-Length: 0\r\n\r\n".to_vec());
    let huge =
        cache.publish("huge", "x", &[], Some(&key), |info| info.replace("NarSize: ", "NarSize: 9000000"));
    let stranger = cache.publish("stranger", "x", &[], Some(&key), |info| {
        info.replace(&path("stranger").to_absolute_path(), &path("unsigned").to_absolute_path())
    });
    let foreign =
        cache.publish("foreign", "x", &[], Some(&key), |info| info.replace("/nix/store/", "/gnu/store/"));
    let long = cache.publish("long", "x", &[], Some(&key), |info| info + &"Future: thing\n".repeat(100_000));
    let packed = cache.publish("packed", "x", &[], Some(&key), |info| info.replace("none", "zstd"));
    let (one, two) = (path("one"), path("two"));
    cache.publish("one", "1", std::slice::from_ref(&two), Some(&key), as_it_is);
    cache.publish("two", "2", std::slice::from_ref(&one), Some(&key), as_it_is);
    let lacking = cache.publish("lacking", "x", &[path("nowhere")], Some(&key), as_it_is);

    let scripted = fetching_agent(address, &key, "limits.max-nar-mib = 1\n");
    let mut alice = scripted.session("alice").await;
    for (what, said) in [
        (&unsigned, "has no signature; sign it there"),
        (&unknown, "(signed by other-1); add the key to `trusted-public-keys` of the box"),
        (&forged, "no right signature by a key this box trusts (signed by cache.example.org-1)"),
        (&references, "no right signature"),
        (&swapped, "hash mismatch"),
        (&no_file_hash, "hash mismatch"),
        (&cut, "truncated"),
        (&garbage, "from http://127.0.0.1"),
        (&endless, "larger than"),
        (&gone, "answered 404"),
        (&moved, "more than 10 redirects"),
        (&huge, "raise `limits.max-nar-mib`"),
        (&stranger, "its narinfo is about"),
        (&foreign, "bad StorePath (/gnu/store/"),
        (&long, "larger than 1048576 bytes"),
        (&packed, "not zstd data"),
        (&one, "go in a circle"),
        (&lacking, "is in none of this box's substituters"),
    ] {
        let name = what.name();
        let error = ensure(&mut alice, what).await.expect_err(name);
        assert!(error.contains(said), "{name}: {error}");
        assert!(error.len() < 700 && !error.contains('\n'), "{name}: {error}");
        assert!(!is_valid(&mut alice, what).await, "{name}");
        // A cache that lies about one path may be honest about the next.
        let good = cache.publish(&format!("good-{name}"), name, &[], Some(&key), as_it_is);
        assert_eq!(ensure(&mut alice, &good).await, Ok(()), "after {name}");
    }
}

#[tokio::test]
async fn a_cache_for_another_store_is_never_asked_for_a_path() {
    let (cache, address) = Cache::open().await;
    cache.put("nix-cache-info", ok("StoreDir: /gnu/store\n"));
    let key = key();
    let app = cache.publish("app", "x", &[], Some(&key), as_it_is);
    let scripted = fetching_agent(address, &key, "");
    let mut alice = scripted.session("alice").await;
    let error = ensure(&mut alice, &app).await.expect_err("no use");
    assert!(error.contains("says that its paths are below '/gnu/store'"), "{error}");
    assert_eq!(cache.asked(&narinfo_of(&app)), 0);
}

#[tokio::test]
async fn a_cache_that_is_down_or_stalls_costs_a_clear_line_and_is_left_alone_for_a_while() {
    let key = key();
    // No server listens there any more.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let down = fetching_agent(address, &key, "");
    let mut alice = down.session("alice").await;
    let error = ensure(&mut alice, &path("app")).await.expect_err("down");
    assert!(error.contains("not all substituters could be asked: cannot fetch 'http://127.0.0.1"), "{error}");
    let error = ensure(&mut alice, &path("app")).await.expect_err("left alone");
    assert!(error.contains("is not asked for another"), "{error}");
    assert!(!is_valid(&mut alice, &path("app")).await, "the box serves");

    // It reads the request and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = fetching_agent(listener.local_addr().expect("an address"), &key, "");
    let mut alice = silent.session("alice").await;
    let error = ensure(&mut alice, &path("app")).await.expect_err("silent");
    assert!(error.contains("nothing came for 1 seconds (`fetch.stall-seconds`)"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_hangs_is_waited_for_once_whatever_is_wanted() {
    let (address, connections) = silent().await;
    let scripted = fetching_agent(address, &key(), "");
    let mut alice = scripted.session("alice").await;
    let paths: Vec<StorePath> = (0..100).map(|n| path(&format!("path-{n}"))).collect();
    alice.call(&Request::QueryValidPaths { paths, substitute: true }).await.expect("an answer");
    assert_eq!(alice.paths().await.expect("paths"), []);
    // One, unless the machine is so slow that the first pause ends before all have asked.
    let asked = connections.load(Ordering::Relaxed);
    assert!(asked <= 3, "{asked} connections");
    let error = ensure(&mut alice, &path("app")).await.expect_err("no answer");
    assert!(!error.contains("another 300 seconds"), "{error}");
}

#[tokio::test]
async fn a_cache_that_wants_no_mass_queries_gets_none_and_is_not_taken_to_have_nothing() {
    let (eager, address) = Cache::open().await;
    let (shy, other) = Cache::open().await;
    shy.put("nix-cache-info", ok("StoreDir: /nix/store\nWantMassQuery: 0\nPriority: 10\n"));
    let key = key();
    let (common, rare) = (path("common"), path("rare"));
    for cache in [&eager, &shy] {
        cache.publish("common", "x", &[], Some(&key), as_it_is);
    }
    shy.publish("rare", "x", &[], Some(&key), as_it_is);
    let scripted = Scripted::open(&format!(
        "substituters = [\"http://{address}\", \"http://{other}\"]\ntrusted-public-keys = [\"{}\"]\n\
         fetch.allow-private = true\n",
        key.public()
    ));
    let mut alice = scripted.session("alice").await;
    let paths = vec![common.clone(), rare.clone()];
    alice.call(&Request::QuerySubstitutablePaths { paths }).await.expect("an answer");
    assert_eq!(alice.paths().await.expect("paths"), std::slice::from_ref(&common));
    assert_eq!((shy.asked(&narinfo_of(&common)), shy.asked(&narinfo_of(&rare))), (0, 0));
    // A request for one path goes to all caches, first to the one with the better priority.
    for path in [&rare, &common] {
        assert_eq!(ensure(&mut alice, path).await, Ok(()));
        assert_eq!(shy.asked(&narinfo_of(path)), 1);
    }
}

#[tokio::test]
async fn private_addresses_are_not_fetched_from_by_default() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let app = cache.publish("app", "x", &[], Some(&key), as_it_is);
    let scripted = Scripted::open(&format!(
        "substituters = [\"http://{address}\"]\ntrusted-public-keys = [\"{}\"]\n",
        key.public()
    ));
    let mut alice = scripted.session("alice").await;
    let error = ensure(&mut alice, &app).await.expect_err("private");
    assert!(error.contains("set `fetch.allow-private = true` on the box"), "{error}");
    assert!(cache.all_asked() == 0);
}

#[tokio::test]
async fn what_is_wanted_by_two_members_is_downloaded_once() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let big = "x".repeat(8 << 20);
    let app = cache.publish("app", &big, &[], Some(&key), as_it_is);
    let scripted = fetching_agent(address, &key, "");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    let (one, two) = tokio::join!(ensure(&mut alice, &app), ensure(&mut bob, &app));
    assert_eq!((one, two), (Ok(()), Ok(())));
    assert_eq!(cache.asked("nar/app.nar"), 1);
    // Both sessions asked the cache, so the speed of the answer reveals nothing about the other.
    assert_eq!(cache.asked(&narinfo_of(&app)), 2);
}

#[tokio::test]
async fn names_can_be_substituted_always_or_never_whatever_the_client_wants() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let [hello, source, secret] = ["hello-2.12", "hello-src", "secret-tool"]
        .map(|name| cache.publish(name, name, &[], Some(&key), as_it_is));
    let scripted =
        fetching_agent(address, &key, "always-substitute = [\"*-src\"]\nnever-substitute = [\"secret-*\"]\n");
    let mut alice = scripted.session("alice").await;
    let error = ensure(&mut alice, &secret).await.expect_err("never");
    assert!(error.contains("is not valid"), "{error}");
    let settings = wire::types::ClientSettings { use_substitutes: false, ..Default::default() };
    alice.call(&Request::SetOptions(settings)).await.expect("settings");
    assert!(ensure(&mut alice, &hello).await.is_err(), "the client wants none");
    assert_eq!(ensure(&mut alice, &source).await, Ok(()));
    assert_eq!((cache.asked(&narinfo_of(&hello)), cache.asked(&narinfo_of(&secret))), (0, 0));
}

#[tokio::test]
async fn a_fetched_path_wins_over_a_claim_to_the_same_name() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let lib = cache.publish("lib", "honest", &[], Some(&key), as_it_is);
    let app = cache.publish("app", "application", std::slice::from_ref(&lib), Some(&key), as_it_is);
    let scripted = fetching_agent(address, &key, "");
    let view = scripted.agent.store.view(&store::Member::new("alice"));
    let nar = encode_file_nar(b"mine", false);
    let mine = info_of(lib.clone(), &nar, &[]);
    view.import(mine, &mut nar.as_slice()).expect("a claim");
    let mut alice = scripted.session("alice").await;
    assert_eq!(ensure(&mut alice, &app).await, Ok(()));
    assert_eq!(view.read_file(&lib, 100).expect("contents"), b"honest");
}

/// A client with caches and keys of its own.
fn with_own(address: SocketAddr, key: Option<&SecretKey>) -> SessionOptions {
    with_own_at(&format!("http://{address}"), key)
}

/// The same, for a URL.
fn with_own_at(url: &str, key: Option<&SecretKey>) -> SessionOptions {
    let mut options = SessionOptions::default();
    options.set("NIXBUILDNET_SUBSTITUTERS", url);
    if let Some(key) = key {
        options.set("BARN_TRUSTED_PUBLIC_KEYS", &key.public().to_string());
    }
    assert_eq!(options.wrong(), None);
    options
}

/// Why the store believes a path that this member sees.
fn provenance(scripted: &Scripted, member: &str, path: &StorePath) -> Option<Provenance> {
    let view = scripted.agent.store.view(&store::Member::new(member));
    view.info_with_provenance(path).map(|(_, provenance)| provenance)
}

#[tokio::test]
async fn what_only_a_members_own_key_signed_is_that_members_claim_and_nobody_elses() {
    let ((of_box, address), (own, own_address)) = (Cache::open().await, Cache::open().await);
    let (key, own_key) = (key(), SecretKey::generate("alice-1").expect("a key"));
    let lib = of_box.publish("lib", "library", &[], Some(&key), as_it_is);
    let app = own.publish("app", "application", std::slice::from_ref(&lib), Some(&own_key), as_it_is);
    let signed = own.publish("signed", "by the box's key", &[], Some(&key), as_it_is);
    let leaning = own.publish("leaning", "on a claim", std::slice::from_ref(&app), Some(&key), as_it_is);
    own.publish("lib", "another library", &[], Some(&own_key), as_it_is);
    let scripted = fetching_agent(address, &key, "member-substituters = \"any\"");
    let mut alice = scripted.session_with("alice", with_own(own_address, Some(&own_key))).await;
    for path in [&app, &signed, &leaning] {
        assert_eq!(ensure(&mut alice, path).await, Ok(()));
    }
    assert_eq!(own.asked(&narinfo_of(&lib)), 0, "the box's caches come first");
    assert_eq!(provenance(&scripted, "alice", &lib), Some(Provenance::Verified));
    assert_eq!(provenance(&scripted, "alice", &signed), Some(Provenance::Verified));
    for claim in [&app, &leaning] {
        let believed = provenance(&scripted, "alice", claim);
        assert!(matches!(believed, Some(Provenance::Claimed(_))), "{claim:?}: {believed:?}");
        assert_eq!(provenance(&scripted, "bob", claim), None);
    }
    let asked = own.all_asked();
    let mut bob = scripted.session("bob").await;
    let why = ensure(&mut bob, &app).await.expect_err("bob names no caches");
    assert!(why.contains("is in none of this box's substituters"), "{why}");
    assert!(!is_valid(&mut bob, &app).await && is_valid(&mut bob, &signed).await);
    assert_eq!(own.all_asked(), asked, "another member's cache was asked");
}

#[tokio::test]
async fn a_members_cache_needs_a_key_and_what_the_box_allows() {
    let (own, address) = Cache::open().await;
    let (key, own_key) = (key(), SecretKey::generate("alice-1").expect("a key"));
    let app = own.publish("app", "application", &[], Some(&own_key), as_it_is);
    let (_, elsewhere) = Cache::open().await;
    for (config, trusted, why) in [
        (
            "member-substituters = \"any\"",
            None,
            "(signed by alice-1); add the key to `trusted-public-keys` of the box, or to your own",
        ),
        ("", Some(&own_key), "is in none of this box's substituters"),
        ("member-substituters = \"no\"", Some(&own_key), "is in none of this box's substituters"),
    ] {
        let scripted = fetching_agent(elsewhere, &key, config);
        let mut alice = scripted.session_with("alice", with_own(address, trusted)).await;
        let asked = own.all_asked();
        let refused = ensure(&mut alice, &app).await.expect_err(config);
        assert!(refused.contains(why), "{refused}");
        assert!(config.contains("any") || own.all_asked() == asked, "{config}: it was asked");
    }
    // The setting is locked with all others, and members' caches are reached as the box's policy allows.
    let scripted = Scripted::open("member-substituters = \"any\"");
    let mut alice = scripted.session_with("alice", with_own(address, Some(&own_key))).await;
    let asked = own.all_asked();
    let refused = ensure(&mut alice, &app).await.expect_err("a private address");
    assert!(refused.contains("has no public address"), "{refused}");
    scripted.edit_roster(|roster| roster["members"][0]["settings"] = json!({ "allow-override": false }));
    let mut alice = scripted.session_with("alice", with_own(address, Some(&own_key))).await;
    assert!(ensure(&mut alice, &app).await.is_err() && own.all_asked() == asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_members_broken_cache_delays_that_member_alone() {
    let (of_box, address) = Cache::open().await;
    let key = key();
    let path = of_box.publish("app", "application", &[], Some(&key), as_it_is);
    let missing = common::scripted::path("missing");
    let (broken, asked) = silent().await;
    let scripted = fetching_agent(address, &key, "member-substituters = \"any\"");
    let mut alice = scripted.session_with("alice", with_own(broken, Some(&key))).await;
    alice.request(&Request::EnsurePath { path: missing }).await.expect("sent");
    until("alice's cache to be asked", || asked.load(Ordering::SeqCst) > 0).await;
    let mut bob = scripted.session("bob").await;
    assert_eq!(ensure(&mut bob, &path).await, Ok(()));
    assert!(matches!(alice.log().await.expect("an answer").1, End::Error(why) if why.contains("http://")));
    // After the failure it is not asked for a while, and the member's requests do not wait for it.
    let count = asked.load(Ordering::SeqCst);
    assert_eq!(ensure(&mut alice, &path).await, Ok(()));
    assert_eq!(asked.load(Ordering::SeqCst), count);
}

/// Every session has settings of its own, which name the same cache in another way.
#[tokio::test]
async fn a_member_has_few_downloads_from_own_caches_however_many_settings_their_sessions_have() {
    let ((slow, address), (own, own_address)) = (Cache::open().await, Cache::open().await);
    let (_, elsewhere) = Cache::open().await;
    let (key, own_key) = (key(), SecretKey::generate("own-1").expect("a key"));
    let paths = publish_slow(&slow, &own_key, 12);
    let quick = own.publish("quick", "quick", &[], Some(&own_key), as_it_is);
    let scripted = patient_agent(elsewhere, &key, "member-substituters = \"any\"\n");
    let mut alices = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        let options = with_own_at(&format!("http://{address}/?priority={n}"), Some(&own_key));
        let mut alice = asking(scripted.session_with("alice", options).await, path).await;
        wait_for_start(&mut alice).await;
        alices.push(alice);
    }
    until("the downloads of alice", || slow_begun(&slow) >= 4).await;
    let mut bob = scripted.session_with("bob", with_own(own_address, Some(&own_key))).await;
    assert_eq!(ensure(&mut bob, &quick).await, Ok(()));
    assert_eq!(slow_begun(&slow), 4);
}

#[tokio::test]
async fn a_member_asks_own_caches_few_things_at_once_however_many_settings_their_sessions_have() {
    let ((hanging, asked), (own, own_address)) = (silent().await, Cache::open().await);
    let (_, elsewhere) = Cache::open().await;
    let (key, own_key) = (key(), SecretKey::generate("own-1").expect("a key"));
    let quick = own.publish("quick", "quick", &[], Some(&own_key), as_it_is);
    let scripted = patient_agent(elsewhere, &key, "member-substituters = \"any\"\n");
    let mut alices = Vec::new();
    for n in 0..20 {
        let options = with_own_at(&format!("http://{hanging}/?priority={n}"), Some(&own_key));
        alices.push(asking(scripted.session_with("alice", options).await, &path("wanted")).await);
    }
    until("the cache of alice to be asked", || asked.load(Ordering::SeqCst) >= 8).await;
    let mut bob = scripted.session_with("bob", with_own(own_address, Some(&own_key))).await;
    assert_eq!(ensure(&mut bob, &quick).await, Ok(()));
    assert_eq!(asked.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn sessions_of_a_member_with_different_caches_do_not_make_each_other_forget() {
    let ((one, address), (other, other_address)) = (Cache::open().await, Cache::open().await);
    let (_, elsewhere) = Cache::open().await;
    let key = key();
    let scripted = fetching_agent(elsewhere, &key, "member-substituters = \"any\"\n");
    let mut first = scripted.session_with("alice", with_own(address, Some(&key))).await;
    let mut second = scripted.session_with("alice", with_own(other_address, Some(&key))).await;
    let missing = path("missing");
    for _ in 0..3 {
        for session in [&mut first, &mut second] {
            let why = ensure(session, &missing).await.expect_err("nobody has it");
            assert!(why.contains("is in none of"), "{why}");
        }
    }
    let narinfo = narinfo_of(&missing);
    assert_eq!((one.asked(&narinfo), other.asked(&narinfo)), (1, 1));
}

#[tokio::test]
async fn what_others_share_with_a_member_need_not_come_from_the_members_own_caches() {
    let (own, address) = Cache::open().await;
    let (_, elsewhere) = Cache::open().await;
    let (key, own_key) = (key(), SecretKey::generate("bob-1").expect("a key"));
    let lib = path("lib");
    let app = own.publish("app", "application", std::slice::from_ref(&lib), Some(&own_key), as_it_is);
    let scripted = fetching_agent(elsewhere, &key, "member-substituters = \"any\"\n");
    let nar = encode_file_nar(b"alice's", false);
    let of_alice = scripted.agent.store.view(&store::Member::new("alice"));
    of_alice.import(info_of(lib.clone(), &nar, &[]), &mut nar.as_slice()).expect("a claim");
    let mut bob = scripted.session_with("bob", with_own(address, Some(&own_key))).await;
    let why = ensure(&mut bob, &app).await.expect_err("they do not share");
    assert!(why.contains("is in none of"), "{why}");
    scripted.edit_roster(|roster| {
        roster["members"][0]["share-with"] = json!(["bob"]);
        roster["members"][1]["share-with"] = json!(["alice"]);
    });
    assert_eq!(ensure(&mut bob, &app).await, Ok(()));
    assert!(matches!(provenance(&scripted, "bob", &app), Some(Provenance::Claimed(_))));
    // What bob builds upon stays, as with every path of others.
    assert!(matches!(provenance(&scripted, "bob", &lib), Some(Provenance::Claimed(_))));
}
