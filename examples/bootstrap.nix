# From Debian packages to a C compiler in the store.
#
# Debian's programs expect their interpreter and libraries in fixed places. A sandbox has none of those places, so each
# ELF file gets its interpreter and library path rewritten into the store. The first program, busybox, is static and
# runs as it is; the second, patchelf, is started through the C library's own loader until it has patched itself.
{ cache, salt }:
let
  # Copied into the store one by one: a changed package changes only what is built from it.
  deb =
    name:
    builtins.path {
      path = cache + "/debs/${name}.deb";
      name = "${name}.deb";
    };

  source =
    name:
    builtins.path {
      path = cache + "/sources/${name}.tar";
      name = "${name}.tar";
    };

  # A folder, so that the builder's own name is `busybox`: that is how busybox knows it is not an applet.
  busyboxSource = builtins.path {
    path = cache + "/busybox";
    name = "busybox-static";
  };

  run =
    attrs:
    derivation (
      {
        system = "x86_64-linux";
        builder = "${busyboxSource}/bin/busybox";
        # Echoed commands would drown the builders' own words; `-e` and `-u` stop at the first mistake.
        args = [
          "sh"
          "-euc"
          ''
            export PATH="$path"
            eval "$script"
          ''
        ];
        path = "${busyboxSource}/bin";
      }
      // (if salt == "" then { } else { inherit salt; })
      // attrs
    );
in
rec {
  inherit source;

  # sh, sed, grep, awk, tar, diff and the rest of what configure scripts call.
  tools = run {
    name = "tools";
    script = ''
      busybox mkdir -p $out/bin
      for applet in $(busybox --list); do
        busybox ln -s ${busyboxSource}/bin/busybox $out/bin/$applet
      done
    '';
  };

  # What every built program refers to: the C library, its loader, and gcc's support library.
  glibc = run {
    name = "glibc";
    path = "${tools}/bin";
    debs = map deb [
      "libc6"
      "libgcc-s1"
    ];
    script = ''
      mkdir root
      for deb in $debs; do dpkg-deb -x $deb root; done
      mkdir -p $out/lib
      # Without the character set converters and the statistics library: nothing here loads them.
      for library in root/usr/lib/x86_64-linux-gnu/*.so.*; do cp -P $library $out/lib/; done
      ln -s ld-linux-x86-64.so.2 $out/lib/ld.so
      $out/lib/ld.so --library-path $out/lib $out/lib/libc.so.6 | head -n 1
    '';
  };

  # gcc, binutils and the headers in one tree laid out like a Debian root, which is what `--sysroot` wants.
  gcc = run {
    name = "gcc";
    path = "${tools}/bin";
    inherit glibc;
    debs = map deb [
      "patchelf"
      "libstdc++6"
      "gcc-14-x86-64-linux-gnu"
      "cpp-14-x86-64-linux-gnu"
      "libgcc-14-dev"
      "libcc1-0"
      "binutils-x86-64-linux-gnu"
      "libbinutils"
      "libctf0"
      "libctf-nobfd0"
      "libsframe1"
      "libjansson4"
      "libgmp10"
      "libmpfr6"
      "libmpc3"
      "libisl23"
      "zlib1g"
      "libzstd1"
      "libc6"
      "libgcc-s1"
      "libc6-dev"
      "linux-libc-dev"
      "libcrypt1"
      "make"
    ];
    script = ''
      mkdir -p $out/usr/lib $out/usr/lib64 $out/bin
      ln -s usr/lib $out/lib
      ln -s usr/lib64 $out/lib64
      for deb in $debs; do
        echo "unpacking ''${deb#/nix/store/*-}"
        dpkg-deb -x $deb $out
      done

      # Documentation, link-time optimisation, sanitizers, profiling start files and foreign headers: not needed here,
      # and more than half of the size.
      cd $out/usr
      rm -rf share sbin lib/debug lib/x86_64-linux-gnu/gconv lib/x86_64-linux-gnu/audit lib/x86_64-linux-gnu/perl
      find . -name 'lto*' -o -name '*-lto-*' -o -name 'liblto*' -o -name '*san.*' -o -name '*san_preinit.o' \
        -o -name '*gprof*' -o -name '*gcov*' -o -name 'libm-2*.a' -o -name 'libmvec.a' | xargs rm -rf
      cd "$NIX_BUILD_TOP"

      # patchelf writes in place, so what it runs from must not be what it patches.
      libraries=$out/usr/lib/x86_64-linux-gnu
      mkdir stage
      mv $out/usr/bin/patchelf stage/
      cp -L $libraries/libstdc++.so.6 stage/
      patchelf() {
        $glibc/lib/ld.so --library-path $glibc/lib:$PWD/stage $PWD/stage/patchelf "$@"
      }
      patched=0
      for file in $(find $out/usr/bin $out/usr/libexec $libraries -type f); do
        # The first four bytes of every ELF file. Most of what lies here is headers and scripts.
        if [ "$(head -c 4 $file | tr -d '\177')" != ELF ]; then continue; fi
        case $file in
          *.o | *.a | */ld-linux*.so* | */libc.so.6) continue ;;
        esac
        chmod u+w $file
        patchelf --set-rpath $glibc/lib:$libraries $file
        if [ -x $file ] && patchelf --print-interpreter $file >/dev/null 2>&1; then
          patchelf --set-interpreter $glibc/lib/ld-linux-x86-64.so.2 $file
        fi
        patched=$((patched + 1))
      done
      echo "patched $patched programs and libraries"

      # The C library exists once at run time, in $glibc. The copy here is only linked against.
      for program in $out/usr/bin/x86_64-linux-gnu-*; do
        short=''${program##*/x86_64-linux-gnu-}
        ln -s $program $out/bin/$short
      done
      ln -s $out/usr/bin/make $out/bin/make
      rm -f $out/bin/gcc-* $out/bin/cpp-*
      cat > $out/bin/gcc <<END
      #!${busyboxSource}/bin/busybox sh
      # Headers and start files from this tree; loader and libraries of the result from the glibc package.
      export PATH=$out/bin:\$PATH
      exec $out/usr/bin/x86_64-linux-gnu-gcc-14 --sysroot=$out -fno-use-linker-plugin "\$@" \\
        -Wl,--dynamic-linker=$glibc/lib/ld-linux-x86-64.so.2 -Wl,-rpath,$glibc/lib
      END
      chmod 755 $out/bin/gcc
      ln -s gcc $out/bin/cc

      cat > answer.c <<END
      #include <stdio.h>
      int main(void) { puts("the compiler works"); return 0; }
      END
      $out/bin/gcc -O2 answer.c -o answer
      ./answer
    '';
  };

  # A package built from C: tools and compiler on the path, the script of the caller.
  cPackage =
    attrs:
    run (
      attrs
      // {
        path = "${gcc}/bin:${tools}/bin";
        CC = "gcc";
      }
    );
}
