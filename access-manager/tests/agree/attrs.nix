let
  base = { a = 1; b.c = 2; };
  key = "computed";
  inherit (base) a;
  absent = null;
in
rec {
  nested.one.two = 3;
  nested.one.three = 4;
  nested.four = { five = 5; };
  nested.four.six = 6;
  inherit base a;
  inherit (base.b) c;
  ${key} = "by name";
  "quoted name" = "q";
  "with-${key}" = 1;
  ${absent} = "left out";
  self = nested.one.two + a;
  select = [ base.b.c (base.x or "none") (base.b.x.y or "deep") (base.a.b or "not a set") base."a" base.${"a"} ];
  has = [ (base ? a) (base ? b.c) (base ? b.d) (base ? a.b) (base ? "a") (base ? ${"z"}) ];
  update = { a = 1; n = { x = 1; }; } // { n = { y = 2; }; };
  names = builtins.attrNames { z = 1; a = 2; B = 3; };
  values = builtins.attrValues { z = 1; a = 2; B = 3; };
  fromList = builtins.listToAttrs [ { name = "a"; value = 1; } { name = "b"; value = 2; } { name = "a"; value = 3; } ];
  mapped = builtins.mapAttrs (n: v: n + toString v) { a = 1; b = 2; };
  removed = removeAttrs { a = 1; b = 2; } [ "a" "zz" ];
  intersect = builtins.intersectAttrs { a = 1; b = 1; } { b = 2; c = 3; };
  cat = builtins.catAttrs "a" [ { a = 1; } { b = 2; } { a = 3; } ];
  got = [ (builtins.getAttr "a" base) (builtins.hasAttr "q" base) ];
  zipped = builtins.zipAttrsWith (name: values: { inherit name values; }) [ { a = 1; } { a = 2; b = 3; } ];
  lazy = (rec { good = 1; bad = throw "never"; }).good;
  functor = { __functor = self: x: self.y + x; y = 10; } 5;
  or = 1;
}
