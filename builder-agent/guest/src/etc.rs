//! The files of /etc that a builder sees: the same in every kind of sandbox, independent of the host's.
//!
//! Contents as in Nix (src/libstore/unix/build/linux-derivation-builder.cc), for the user 1000, group 100.

/// File name and contents.
pub const FILES: [(&str, &str); 3] = [
    (
        "passwd",
        "root:x:0:0:Nix build user:/build:/noshell\n\
         nixbld:x:1000:100:Nix build user:/build:/noshell\n\
         nobody:x:65534:65534:Nobody:/:/noshell\n",
    ),
    ("group", "root:x:0:\nnixbld:!:100:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];
