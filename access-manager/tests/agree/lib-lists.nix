{ lib, ... }:
with lib;
{
  optional = [ (optional true 1) (optional false 1) (optionals true [ 1 2 ]) (optionals false (throw "lazy")) ];
  flatten = flatten [ 1 [ 2 [ 3 ] ] [ ] ];
  unique = unique [ 1 2 1 3 2 ];
  folds = [ (foldr (a: b: a + b) "" [ "a" "b" ]) (foldl (a: b: a + b) "" [ "a" "b" ]) (foldl' (a: b: a + b) 0 [ 1 2 3 ]) (fold (a: b: a ++ [ b ]) [ ] [ ]) ];
  ends = [ (head [ 1 2 ]) (last [ 1 2 ]) (init [ 1 2 3 ]) (take 2 [ 1 2 3 ]) (drop 1 [ 1 2 3 ]) (take 9 [ 1 ]) (drop 9 [ 1 ]) (sublist 1 2 [ 1 2 3 4 ]) ];
  reverse = reverseList [ 1 2 3 ];
  imap = [ (imap0 (i: x: i + x) [ 10 20 ]) (imap1 (i: x: i + x) [ 10 20 ]) ];
  range = [ (range 1 3) (range 3 1) ];
  count = count (x: x > 1) [ 1 2 3 ];
  find = [ (findFirst (x: x > 1) null [ 1 2 3 ]) (findFirst (x: x > 5) "none" [ 1 ]) ];
  sets = [ (subtractLists [ 1 ] [ 1 2 ]) (intersectLists [ 1 2 ] [ 2 3 ]) (remove 1 [ 1 2 1 ]) (mutuallyExclusive [ 1 ] [ 2 ]) ];
  zip = [ (zipLists [ 1 2 ] [ "a" "b" "c" ]) (zipListsWith (a: b: a + b) [ 1 2 ] [ 3 4 ]) ];
  sorts = [ (sort (a: b: a > b) [ 1 3 2 ]) (sortOn (x: -x) [ 1 3 2 ]) ];
  toLists = [ (toList 1) (toList [ 1 ]) (singleton 1) (forEach [ 1 2 ] (x: x + 1)) (replicate 2 "x") ];
  partition = partition (x: x > 1) [ 1 2 ];
  concats = [ (concatMap (x: [ x ]) [ 1 2 ]) (concatLists [ [ 1 ] [ 2 ] ]) (lists.concatLists [ [ 3 ] ]) ];
  group = groupBy' builtins.add 0 (x: if x > 2 then "big" else "small") [ 1 2 3 4 ];
  all = [ (all (x: x) [ true ]) (any (x: x) [ false ]) (elem 1 [ 1 ]) (length [ ]) (allUnique [ 1 1 ]) ];
}
