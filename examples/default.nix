# A small package set that needs no binary cache and no network: everything starts from Debian packages and upstream
# source archives that `examples/fetch` put into one folder.
#
#   nix build -f examples hello        or: nix-build examples -A zlib
#
# `cache` is that folder. `salt` changes every derivation, for whoever wants to see a build that cannot be reused.
{
  cache ? ../target/cache/examples,
  salt ? "",
}:
let
  bootstrap = import ./bootstrap.nix { inherit cache salt; };
in
bootstrap
// {
  hello = import ./hello.nix bootstrap;
  zlib = import ./zlib.nix bootstrap;
  lua = import ./lua.nix bootstrap;
}
