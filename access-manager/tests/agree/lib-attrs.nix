{ lib, ... }:
{
  mapAttrs = lib.mapAttrs (n: v: "${n}=${toString v}") { a = 1; };
  toList = lib.mapAttrsToList (n: v: { inherit n v; }) { b = 2; a = 1; };
  mapped = lib.mapAttrs' (n: v: lib.nameValuePair "x-${n}" (v + 1)) { a = 1; b = 2; };
  gen = lib.genAttrs [ "a" "b" ] (n: n + n);
  filtered = lib.filterAttrs (n: v: v > 1) { a = 1; b = 2; };
  optional = [ (lib.optionalAttrs true { a = 1; }) (lib.optionalAttrs false { a = 1; }) ];
  paths = [
    (lib.attrByPath [ "a" "b" ] 0 { a.b = 1; }) (lib.attrByPath [ "a" "c" ] 0 { a.b = 1; })
    (lib.hasAttrByPath [ "a" "b" ] { a.b = 1; }) (lib.hasAttrByPath [ "a" "c" ] { a.b = 1; })
    (lib.setAttrByPath [ "a" "b" ] 1) (lib.getAttrFromPath [ "a" ] { a = 2; })
  ];
  recursive = lib.recursiveUpdate { a = { x = 1; y = 1; }; b = 1; } { a = { y = 2; z = 3; }; c = 4; };
  merged = [ (lib.mergeAttrsList [ { a = 1; } { b = 2; } { a = 3; } ]) (lib.mergeAttrs { a = 1; } { a = 2; }) ];
  concatMapAttrs = lib.concatMapAttrs (n: v: { ${n} = v; "${n}${n}" = v * 2; }) { a = 1; b = 2; };
  foldlAttrs = lib.foldlAttrs (acc: n: v: acc + n + toString v) "" { b = 2; a = 1; };
  zip = lib.zipAttrs [ { a = 1; } { a = 2; b = 3; } ];
  attrs = [ (lib.attrsToList { a = 1; }) (lib.getAttrs [ "a" ] { a = 1; b = 2; }) (lib.attrVals [ "b" ] { a = 1; b = 2; }) (lib.attrNames { x = 1; }) (lib.attrValues { x = 1; }) ];
  collected = lib.collect builtins.isInt { a = 1; b.c = 2; };
  folded = lib.foldAttrs (v: acc: [ v ] ++ acc) [ ] [ { a = 1; } { a = 2; b = 3; } ];
  trivial = [ (lib.id 1) (lib.const 1 2) (lib.flip (a: b: a - b) 1 5) (lib.pipe 2 [ (x: x + 1) (x: x * 10) ]) (lib.min 1 2) (lib.max 1 2) (lib.mod 7 3) (lib.boolToString true) (lib.xor true false) (lib.compare 1 2) ];
  throwIf = (lib.throwIf false "no") "value";
  modules = [ (lib.mkIf true { a = 1; }) (lib.mkMerge [ { a = 1; } ]) (lib.mkForce 1) (lib.mkDefault 2) (lib.mkBefore [ 1 ]) ];
  attrsets = lib.attrsets.mapAttrsToList (n: v: v) { a = 1; };
}
