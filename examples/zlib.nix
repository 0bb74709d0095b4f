# zlib from its upstream source: configure, compile, self-test, install.
bootstrap:
bootstrap.cPackage {
  name = "zlib";
  source = bootstrap.source "zlib";
  script = ''
    tar -xzf $source
    cd zlib*
    ./configure --prefix=$out
    make
    # Compresses and decompresses with the static and the shared library, and fails the build when they disagree.
    make test
    make install
    rm -rf $out/share
  '';
}
