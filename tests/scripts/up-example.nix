# A C program that is made in a home: a header comes from the network as a fixed output, and the compiler is one that the box has.
{
  url,
  sha256,
  gcc,
}:
let
  run =
    attrs:
    derivation (
      {
        system = "x86_64-linux";
        builder = "/bin/sh";
      }
      // attrs
    );

  # The second address is one that the policy of the box's network refuses.
  header = run {
    name = "greeting.h";
    args = [
      "-euc"
      ''
        wget -q -O $out ${url}
        echo "fetched: $(wc -c < $out) bytes from ${url}, with the hash that was asked for"
        ! wget -q -O metadata http://169.254.169.254/
      ''
    ];
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = sha256;
  };
in
run {
  name = "hello-from-home";
  # Not copied, and not built again: it is in the view of whoever asks.
  PATH = "${builtins.storePath gcc}/bin";
  args = [
    "-euc"
    "mkdir -p $out/bin; gcc -O2 -Wall -Werror -include ${header} ${./hello.c} -o $out/bin/hello"
  ];
}
