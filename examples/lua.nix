# Lua from its upstream source. Its own `make test` only prints the version, so a self-test of ours follows.
bootstrap:
bootstrap.cPackage {
  name = "lua";
  source = bootstrap.source "lua5.4";
  selfTest = ./lua-selftest.lua;
  script = ''
    tar -xzf $source
    cd lua*
    make linux CC=gcc
    make test
    src/lua $selfTest
    make install INSTALL_TOP=$out
    rm -rf $out/man
  '';
}
