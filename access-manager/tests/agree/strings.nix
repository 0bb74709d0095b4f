let
  name = "alice";
  nested = { key = "value"; };
in
{
  escapes = "a\tb\nc\"d\\e\${name}$name$${name}\q";
  interpolation = "hello ${name} ${nested.key} ${"inner ${name}"}";
  notInterpolated = "$ { name } $$";
  url = https://example.org/a?b=c;
  lengths = [ (builtins.stringLength "") (builtins.stringLength "äb") ];
  substrings = [ (builtins.substring 0 3 "abcdef") (builtins.substring 2 (-1) "abcdef") (builtins.substring 9 2 "abc") (builtins.substring 1 100 "abc") ];
  plus = "a" + "b" + name;
  sep = builtins.concatStringsSep ", " [ "a" "b" "c" ];
  sepEmpty = builtins.concatStringsSep ", " [ ];
  replaced = [
    (builtins.replaceStrings [ "a" "b" ] [ "b" "a" ] "abba")
    (builtins.replaceStrings [ "" ] [ "-" ] "abc")
    (builtins.replaceStrings [ "ab" "a" ] [ "1" "2" ] "abaab")
    (builtins.replaceStrings [ "a" "" ] [ "x" "_" ] "bab")
    (builtins.replaceStrings [ ] [ ] "abc")
    (builtins.replaceStrings [ "" ] [ "x" ] "")
    (builtins.replaceStrings [ "a" ] [ "" ] "aaa")
  ];
  toString = map toString [ 1 true false null "x" [ 1 [ 2 3 ] [ ] "b" ] 1.5 (-3) ];
  magic = "${{ __toString = self: "from ${self.x}"; x = "x"; }}";
  json = builtins.toJSON { a = [ 1 2.5 null true "q\"" ]; b.c = "d"; };
  fromJson = builtins.fromJSON ''{"a": [1, 2.5, null, true, "x"], "b": {"c": -1}}'';
  baseNames = [ (baseNameOf "a/b/c") (baseNameOf "a/b/") (baseNameOf "c") (baseNameOf ./files/one.pub) ];
  dirs = [ (dirOf "a/b/c") (dirOf "c") (dirOf "/c") ];
  typeOf = map builtins.typeOf [ 1 1.0 "s" ./. [ ] { } null true (x: x) map ];
}
