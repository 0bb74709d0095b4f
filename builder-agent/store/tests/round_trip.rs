//! The NAR of an object equals the NAR from which it was made, and standard tools can read the object.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use common::*;
use nix_archive::nar::{CaseHack, encode_path};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use store::object::{FileTree, FilesError};
use store::{Composed, Provenance, Store, View};

fn put(view: &View, name: &str, nar: &[u8], pieces: usize) -> nix_derivation::StorePath {
    let path = path(name);
    let mut ingest = view.ingest(&[]).unwrap();
    for piece in nar.chunks(pieces) {
        ingest.write_all(piece).unwrap();
    }
    assert_eq!(ingest.surely_left(), 0);
    let ingested = ingest.finish().unwrap();
    view.register(ingested, info(&path, nar, &[]), Provenance::Claimed(view.member().clone())).unwrap();
    path
}

fn read_all(view: &View, path: &nix_derivation::StorePath) -> Vec<u8> {
    let mut out = Vec::new();
    view.nar(path).unwrap().read_to_end(&mut out).unwrap();
    out
}

/// Checks the image in `file` with fsck.erofs, which also unpacks it; returns the NAR of what it unpacked.
fn fsck(file: &Path, below: &str) -> Vec<u8> {
    let out = file.with_extension("unpacked");
    let run = Command::new("fsck.erofs")
        .arg(format!("--extract={}", out.display()))
        .args(["-d3", "--preserve-perms"])
        .arg(file)
        .output()
        .expect("fsck.erofs runs (install erofs-utils)");
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "fsck.erofs: {said}");
    assert!(said.contains("Extracted filesystem successfully"), "fsck.erofs: {said}");
    let mut nar = Vec::new();
    encode_path(&mut nar, &out.join(below), CaseHack::Disabled).unwrap();
    remove(&out);
    nar
}

fn remove(dir: &Path) {
    let ok = Command::new("chmod").args(["-R", "u+w"]).arg(dir).status().unwrap().success();
    assert!(ok);
    fs::remove_dir_all(dir).unwrap();
}

fn store_with_nothing() -> (tempfile::TempDir, Store) {
    let dir = scratch();
    let store = open(dir.path());
    (dir, store)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_byte_for_byte(tree in tree(), pieces in 1_usize..100_000, reads in 1_usize..70_000) {
        let (dir, store) = store_with_nothing();
        let view = store.view(&alice());
        let nar = tree.nar();
        let path = put(&view, "any", &nar, pieces);
        let mut out = Vec::new();
        let mut reader = view.nar(&path).unwrap();
        prop_assert_eq!(reader.size(), nar.len() as u64);
        let mut buf = vec![0; reads];
        loop {
            let n = reader.read(&mut buf).unwrap();
            if n == 0 { break; }
            out.extend_from_slice(&buf[..n]);
        }
        prop_assert!(out == nar, "the NAR differs");
        view.verify(&path).unwrap();

        // The same through a standard tool, from the object's file alone.
        store.tidy().unwrap();
        store.tidy().unwrap();
    let object = fs::read_dir(dir.path().join("objects")).unwrap().next().unwrap().unwrap().path();
        let copy = dir.path().join("copy.img");
        fs::copy(object, &copy).unwrap();
        prop_assert!(fsck(&copy, "root") == nar, "fsck.erofs unpacks something else");

        // And the unpacked copy for the namespace backend.
        let unpacked = common::unpacked(&view, &path);
        let mut again = Vec::new();
        encode_path(&mut again, &unpacked, CaseHack::Disabled).unwrap();
        prop_assert!(again == nar, "the unpacked tree differs");
        prop_assert_eq!(common::unpacked(&view, &path), unpacked);
    }

    #[test]
    fn a_composed_image_lists_exactly_the_closure(trees in prop::collection::vec(tree(), 1..5)) {
        let (dir, store) = store_with_nothing();
        let view = store.view(&alice());
        let nars: Vec<Vec<u8>> = trees.iter().map(Tree::nar).collect();
        let paths: Vec<_> =
            nars.iter().enumerate().map(|(i, nar)| put(&view, &format!("part-{i}"), nar, 65_536)).collect();
        let image = dir.path().join("composed.img");
        compose(&view, paths.iter().cloned().collect(), &image);
        let unpacked = fsck(&image, ".");
        let whole = Tree::Dir(
            paths.iter().zip(&trees).map(|(p, t)| (p.to_basename().into_bytes(), t.clone())).collect(),
        );
        prop_assert!(unpacked == whole.nar(), "the composed image has other contents");
    }

    #[test]
    fn open_files_are_an_image_with_their_contents(tree in tree()) {
        let dir = scratch();
        let tree = Tree::Dir([(b"top".to_vec(), of_files(&tree))].into());
        let image = dir.path().join("files.img");
        write_image(&file_tree(&tree, dir.path()).compose().unwrap(), &image);
        prop_assert!(fsck(&image, ".") == tree.nar(), "the image has other contents");
    }
}

/// The tree without what an image of open files cannot have: symlinks, executable files, names that are not text.
fn of_files(tree: &Tree) -> Tree {
    match tree {
        Tree::File { contents, .. } => file(contents),
        Tree::Symlink(target) => file(target),
        Tree::Dir(entries) => Tree::Dir(
            entries
                .iter()
                .map(|(name, t)| (String::from_utf8_lossy(name).into_owned().into_bytes(), of_files(t)))
                .collect(),
        ),
    }
}

/// The files of `tree` with fewer than 100 bytes are in memory, the others in `dir`.
fn file_tree(tree: &Tree, dir: &Path) -> FileTree {
    fn add(to: &mut FileTree, path: &str, tree: &Tree, dir: &Path) {
        match tree {
            Tree::Dir(entries) => {
                if !path.is_empty() {
                    to.folder(path).unwrap();
                }
                for (name, t) in entries {
                    let name = String::from_utf8(name.clone()).unwrap();
                    add(to, &if path.is_empty() { name } else { format!("{path}/{name}") }, t, dir);
                }
            }
            Tree::File { contents, .. } if contents.len() < 100 => to.bytes(path, contents.clone()).unwrap(),
            Tree::File { contents, .. } => {
                let mut file = tempfile::tempfile_in(dir).unwrap();
                file.write_all(contents).unwrap();
                to.open(path, std::sync::Arc::new(file), contents.len() as u64).unwrap();
            }
            Tree::Symlink(_) => unreachable!("`of_files` leaves none"),
        }
    }
    let mut to = FileTree::new();
    add(&mut to, "", tree, dir);
    to
}

fn compose(view: &View, paths: BTreeSet<nix_derivation::StorePath>, to: &Path) {
    write_image(&view.snapshot(&paths).unwrap().compose().unwrap(), to);
}

/// Writes an image to a file, with zeros where a piece ends behind its file, as a mapping shows them.
fn write_image(composed: &Composed, to: &Path) {
    let mut image = fs::File::create(to).unwrap();
    for (file, offset, len) in &composed.segments {
        assert_eq!((offset % 4096, len % 4096), (0, 0));
        let there = (file.metadata().unwrap().len() - offset).min(*len);
        assert!(len - there < 4096, "a page without data cannot be read through a mapping");
        let mut piece = vec![0; *len as usize];
        std::os::unix::fs::FileExt::read_exact_at(&**file, &mut piece[..there as usize], *offset).unwrap();
        image.write_all(&piece).unwrap();
    }
    assert_eq!(composed.len, image.metadata().unwrap().len());
}

/// Mounts `image` and returns the NAR of the mounted tree, or the reason why mounting is not possible here.
fn mounted(image: &Path, below: &str) -> Result<Vec<u8>, String> {
    let at = image.with_extension("mounted");
    fs::create_dir(&at).unwrap();
    let run =
        Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).args([image, &at]).output().unwrap();
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into_owned());
    }
    let mut nar = Vec::new();
    let result = encode_path(&mut nar, &at.join(below), CaseHack::Disabled);
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    result.unwrap();
    Ok(nar)
}

fn many_entries() -> Tree {
    let mut entries = std::collections::BTreeMap::new();
    for i in 0..3000 {
        entries.insert(format!("entry-{i:05}-with-a-rather-long-name").into_bytes(), file(format!("{i}")));
    }
    // Names that sort before and after `.` and `..`.
    for name in ["!", "+x", "-", ".a", "..a", "...", "0"] {
        entries.insert(name.as_bytes().to_vec(), Tree::Dir(Default::default()));
    }
    dir([
        ("many", Tree::Dir(entries)),
        ("link", Tree::Symlink(vec![b'x'; 4095])),
        ("short", Tree::Symlink(b"many".to_vec())),
    ])
}

#[test]
fn the_kernel_mounts_objects_and_composed_images() {
    let (dir, store) = store_with_nothing();
    let view = store.view(&alice());
    let (nar, small) = (many_entries().nar(), file(noise(7, 10_000)).nar());
    let big = put(&view, "many", &nar, 4096);
    store.tidy().unwrap();
    let object = fs::read_dir(dir.path().join("objects")).unwrap().next().unwrap().unwrap().path();
    let copy = dir.path().join("copy.img");
    fs::copy(object, &copy).unwrap();
    assert!(fsck(&copy, "root") == nar);
    let single = put(&view, "single", &small, 4096);
    let image = dir.path().join("composed.img");
    compose(&view, [big.clone(), single.clone()].into(), &image);
    assert!(fsck(&image, &big.to_basename()) == nar);
    match mounted(&copy, "root") {
        Ok(got) => assert!(got == nar, "the kernel shows another object"),
        Err(why) => return eprintln!("SKIPPED the kernel's part: it cannot mount EROFS here: {why}"),
    }
    assert!(mounted(&image, &big.to_basename()).unwrap() == nar);
    fs::remove_dir(dir.path().join("composed.mounted")).unwrap();
    assert!(mounted(&image, &single.to_basename()).unwrap() == small);
}

#[test]
fn the_kernel_mounts_an_image_of_open_files() {
    let dir = scratch();
    // Directories whose last blocks end everywhere near the end of the first inode block, also the root directory.
    for entries in 190..205 {
        let names =
            |at: &'static str| (0..entries).map(move |i| (format!("{at}{i:08}").into_bytes(), file(b"")));
        let mut tree: std::collections::BTreeMap<_, _> = names("").collect();
        tree.insert(b"inner".to_vec(), Tree::Dir(names("x").collect()));
        let tree = Tree::Dir(tree);
        let image = dir.path().join("root.img");
        write_image(&file_tree(&tree, dir.path()).compose().unwrap(), &image);
        assert!(fsck(&image, ".") == tree.nar(), "{entries} entries");
        fs::remove_file(&image).unwrap();
    }
    let image = dir.path().join("files.img");
    let tree = of_files(&many_entries());
    write_image(&file_tree(&tree, dir.path()).compose().unwrap(), &image);
    match mounted(&image, ".") {
        Ok(got) => assert!(got == tree.nar(), "the kernel shows other files"),
        Err(why) => eprintln!("SKIPPED: the kernel cannot mount EROFS here: {why}"),
    }
}

#[test]
fn an_image_has_no_two_files_of_one_name_and_no_odd_names() {
    let mut tree = FileTree::new();
    tree.bytes("a/b", b"1".to_vec()).unwrap();
    for twice in ["a", "a/b", "a/b/c"] {
        assert!(matches!(tree.bytes(twice, Vec::new()), Err(FilesError::Twice(_))), "{twice}");
    }
    let long = "x".repeat(256);
    for odd in ["", "/a", "a//b", "a/", ".", "..", "a/../b", "a\0", &long] {
        assert!(matches!(tree.bytes(odd, Vec::new()), Err(FilesError::Path(_))), "{odd}");
    }
}

#[test]
fn an_object_depends_on_its_nar_only() {
    let nar = many_entries().nar();
    let images: Vec<Vec<u8>> = [1 << 20, 1000]
        .into_iter()
        .map(|pieces| {
            let (dir, store) = store_with_nothing();
            put(&store.view(&alice()), "x", &nar, pieces);
            store.tidy().unwrap();
            fs::read(fs::read_dir(dir.path().join("objects")).unwrap().next().unwrap().unwrap().path())
                .unwrap()
        })
        .collect();
    assert!(images[0] == images[1]);
}

#[test]
fn import_reads_not_one_byte_beyond_the_nar() {
    let (_dir, store) = store_with_nothing();
    let view = store.view(&alice());
    for (i, tree) in
        [many_entries(), file(b""), file(noise(1, 300_000)), Tree::Symlink(b"t".to_vec())].iter().enumerate()
    {
        let nar = tree.nar();
        let stream = [&nar[..], b"the next message"].concat();
        let mut rest = &stream[..];
        let path = path(&format!("exact-{i}"));
        view.import(info(&path, &nar, &[]), &mut rest).unwrap();
        assert_eq!(rest, b"the next message");
        assert!(read_all(&view, &path) == nar);
    }
}

#[test]
fn references_are_found_across_writes_and_files() {
    let (_dir, store) = store_with_nothing();
    let view = store.view(&alice());
    let (one, two, three) = (path("one"), path("two"), path("three"));
    let text = format!("x{}y", hash_part(&one));
    let tree = dir([
        ("a", file(text)),
        ("l", Tree::Symlink(format!("/nix/store/{}-two/x", hash_part(&two)).into())),
    ]);
    let nar = tree.nar();
    for pieces in [1, 7, 31, 32, 33, nar.len()] {
        let mut ingest = view.ingest(&[one.clone(), two.clone(), three.clone()]).unwrap();
        nar.chunks(pieces).for_each(|p| ingest.write_all(p).unwrap());
        let ingested = ingest.finish().unwrap();
        assert_eq!(ingested.references, [one.clone(), two.clone()].into(), "in pieces of {pieces}");
        assert_eq!(ingested.nar_hash, <[u8; 32]>::from(Sha256::digest(&nar)));
    }
}

#[test]
fn what_is_not_registered_leaves_nothing_behind() {
    let (dir, store) = store_with_nothing();
    let view = store.view(&alice());
    let nar = file(noise(3, 1 << 20)).nar();
    let mut half = view.ingest(&[]).unwrap();
    half.write_all(&nar[..nar.len() / 2]).unwrap();
    let mut whole = view.ingest(&[]).unwrap();
    whole.write_all(&nar).unwrap();
    let whole = whole.finish().unwrap();
    assert_eq!(count(&dir.path().join("tmp")), 2);
    drop(half);
    drop(whole);
    assert_eq!(count(&dir.path().join("tmp")), 0);
    assert_eq!(count(&dir.path().join("objects")), 0);
}

#[test]
fn unpacked_trees_have_canonical_modes_and_times() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, store) = store_with_nothing();
    let view = store.view(&alice());
    let tool = Tree::File { executable: true, contents: b"#!".to_vec() };
    let nar =
        dir([("bin", dir([("tool", tool)])), ("doc", file("d")), ("l", Tree::Symlink(b"doc".to_vec()))])
            .nar();
    let unpacked = common::unpacked(&view, &put(&view, "t", &nar, 512));
    for (name, mode) in
        [("", 0o40555), ("bin", 0o40555), ("bin/tool", 0o100555), ("doc", 0o100444), ("l", 0o120777)]
    {
        let meta = fs::symlink_metadata(unpacked.join(name)).unwrap();
        assert_eq!((meta.mode(), meta.mtime()), (mode, 1), "{name:?}");
    }
}

#[test]
fn standard_tools_read_an_object_whose_inodes_fill_their_blocks() {
    let (dir, store) = store_with_nothing();
    let view = store.view(&alice());
    // Inodes of empty files take one slot each; somewhere in this range the last one ends with its block.
    for n in 76..90 {
        let entries = (0..n).map(|i| (format!("{i:03}").into_bytes(), file(b""))).collect();
        let nar = Tree::Dir(entries).nar();
        let path = put(&view, &format!("full-{n}"), &nar, 4096);
        let hash = nix_derivation::nixbase32::encode(&view.info(&path).unwrap().nar_hash);
        let copy = dir.path().join("copy.img");
        store.tidy().unwrap();
        fs::copy(dir.path().join("objects").join(hash), &copy).unwrap();
        assert!(fsck(&copy, "root") == nar, "{n} files");
        fs::remove_file(copy).unwrap();
    }
}
