use nix_derivation::StorePath;
use nix_derivation::store_path::hash_placeholder;

use super::*;

fn recipe(aterm: &str) -> Recipe {
    let path = StorePath::from_basename(b"ib3sh3pcz10wsmavxvkdbayhqivbghlq-t.drv").expect("a path");
    Recipe::from_drv(&path, aterm.as_bytes()).expect("a derivation")
}

const OUT: &str = "/nix/store/8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0v-t";

fn around(recipe: &Recipe, graphs: Graphs, cores: u32) -> Result<Surroundings, Failure> {
    let cancel = sandbox::Cancel::new();
    surroundings(
        recipe,
        graphs,
        cores,
        &Watch::start(&recipe.drv_path, &cancel, None, &crate::limits::Origins::default()),
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn with_env(env: &str) -> Recipe {
    recipe(&format!(
        r#"Derive([("out","{OUT}","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo {}"],[{env}])"#,
        hash_placeholder("out")
    ))
}

#[test]
fn environment_is_what_nix_gives_and_some_of_it_cannot_be_overridden() {
    let made = around(&with_env(r#"("HOME","/mine"),("TMPDIR","/mine"),("out","x")"#), Graphs::new(), 3)
        .expect("fine");
    let env: Vec<String> =
        made.env.iter().map(|(name, value)| text(&[name, &b"="[..], value].concat())).collect();
    assert_eq!(
        env,
        [
            "HOME=/mine",
            "NIX_BUILD_CORES=3",
            "NIX_BUILD_TOP=/build",
            "NIX_LOG_FD=2",
            "NIX_STORE=/nix/store",
            "PATH=/path-not-set",
            "PWD=/build",
            "TEMP=/build",
            "TEMPDIR=/build",
            "TERM=xterm-256color",
            "TMP=/build",
            "TMPDIR=/build",
            "out=x",
        ]
    );
}

#[test]
fn placeholders_become_output_paths_in_arguments_variables_and_files() {
    let placeholder = hash_placeholder("out");
    let made = around(
        &with_env(&format!(r#"("a","[{placeholder}]"),("b","<{placeholder}>"),("passAsFile","b")"#)),
        Graphs::new(),
        1,
    )
    .expect("fine");
    assert_eq!(made.args, [b"-c".to_vec(), format!("echo {OUT}").into_bytes()]);
    assert_eq!(text(&made.env[&b"a"[..]]), format!("[{OUT}]"));
    assert_eq!(made.files[0].1, format!("<{OUT}>").into_bytes());
    assert_eq!(text(&made.env[&b"bPath"[..]]), format!("/build/{}", made.files[0].0));
    assert!(made.files[0].0.starts_with(".attr-") && !made.env.contains_key(&b"b"[..]));
}

#[test]
fn structured_attributes_come_as_files_and_not_as_variables() {
    let made = around(&with_env(r#"("__json","{\"a\":[1,\"\\n\"],\"name\":\"t\"}")"#), Graphs::new(), 1)
        .expect("fine");
    assert_eq!(made.env[&b"NIX_ATTRS_JSON_FILE"[..]], b"/build/.attrs.json");
    assert_eq!(made.env[&b"NIX_ATTRS_SH_FILE"[..]], b"/build/.attrs.sh");
    assert!(!made.env.contains_key(&b"__json"[..]) && !made.env.contains_key(&b"a"[..]));
    let json =
        String::from_utf8(made.files.iter().find(|file| file.0 == ".attrs.json").expect("made").1.clone())
            .expect("text");
    assert_eq!(json, format!(r#"{{"a":[1,"\n"],"name":"t","outputs":{{"out":"{OUT}"}}}}"#));
}

#[test]
fn a_variable_no_program_could_receive_is_refused() {
    let failure = around(&with_env("(\"a=b\",\"x\")"), Graphs::new(), 1).expect_err("refused");
    assert!(failure.message.contains("its variable 'a=b' cannot be passed"), "{}", failure.message);
}

#[test]
fn strings_are_bytes_in_variables_arguments_and_files() {
    let mut aterm = b"Derive([(\"out\",\"".to_vec();
    aterm.extend(OUT.bytes());
    aterm.extend(b"\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[\"\xff ");
    aterm.extend(hash_placeholder("out").bytes());
    aterm.extend(b"\"],[(\"a\",\"D\xfc\"),(\"f\xfe\",\"\xfd\"),(\"passAsFile\",\"f\xfe\")])");
    let path = StorePath::from_basename(b"ib3sh3pcz10wsmavxvkdbayhqivbghlq-t.drv").expect("a path");
    let recipe = Recipe::from_drv(&path, &aterm).expect("a derivation");
    let made = around(&recipe, Graphs::new(), 1).expect("fine");
    assert_eq!(made.args, [[b"\xff ", OUT.as_bytes()].concat()]);
    assert_eq!(made.env[&b"a"[..]], b"D\xfc");
    assert_eq!(made.files[0].1, b"\xfd");
    assert_eq!(text(&made.env[&b"f\xfePath"[..]]), format!("/build/{}", made.files[0].0));
}
