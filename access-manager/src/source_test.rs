use super::*;

/// A commit with this many files at the top: `f0`, `f1`, and so on.
fn commit(files: usize) -> (tempfile::TempDir, GitTree) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let repository = git2::Repository::init_bare(dir.path()).unwrap();
    let commit = {
        let blob = repository.blob(b"text").unwrap();
        let mut builder = repository.treebuilder(None).unwrap();
        for number in 0..files {
            builder.insert(format!("f{number}"), blob, 0o100_644).unwrap();
        }
        let tree = repository.find_tree(builder.write().unwrap()).unwrap();
        let author = git2::Signature::now("test", "test@localhost").unwrap();
        repository.commit(None, &author, &author, "files", &tree, &[]).unwrap()
    };
    let tree = GitTree::new(repository, commit).unwrap();
    (dir, tree)
}

#[test]
fn a_file_in_a_directory_that_is_too_large_to_list_can_be_read() {
    for files in [MAX_ENTRIES, MAX_ENTRIES + 1] {
        let (_dir, tree) = commit(files);
        assert_eq!(tree.look("f0").unwrap(), Some(Node::File));
        assert_eq!(tree.read("f0", 4).unwrap(), b"text");
        assert_eq!(tree.look("missing").unwrap(), None);
        assert_eq!(tree.list("").is_ok(), files == MAX_ENTRIES);
        assert_eq!(tree.look("f0/below").unwrap(), None, "a file is no directory");
    }
}
