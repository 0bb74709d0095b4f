# One C file, and an account of the place it was built in: the kernel, and the network devices (only `lo` is fine).
bootstrap:
bootstrap.cPackage {
  name = "hello";
  source = ./hello.c;
  script = ''
    echo "kernel of this builder: $(uname -r)"
    echo "network devices of this builder:$(sed -n 's/^ *\([^ :]*\):.*/ \1/p' /proc/net/dev | tr -d '\n')"
    mkdir -p $out/bin
    gcc -O2 -Wall -Werror $source -o $out/bin/hello
    $out/bin/hello
  '';
}
