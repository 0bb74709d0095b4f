with builtins;
{
  all = [ (all (x: x > 0) [ 1 2 ]) (any (x: x > 1) [ 1 2 ]) (all (x: false) [ ]) ];
  concat = concatLists [ [ 1 ] [ ] [ 2 3 ] ];
  concatMap = concatMap (x: [ x x ]) [ 1 2 ];
  elem = [ (elem 1 [ 1 2 ]) (elem "x" [ ]) (elemAt [ 1 2 3 ] 1) ];
  filter = filter (x: x != 2) [ 1 2 3 ];
  fold = foldl' (a: b: a + b) "" [ "a" "b" "c" ];
  gen = genList (x: x * x) 5;
  group = groupBy (x: if x > 2 then "big" else "small") [ 1 2 3 4 ];
  headTail = [ (head [ 1 2 ]) (tail [ 1 2 3 ]) (length [ 1 2 ]) ];
  part = partition (x: x > 1) [ 1 2 3 ];
  sorted = [ (sort lessThan [ 3 1 2 ]) (sort (a: b: a.k < b.k) [ { k = 2; v = 1; } { k = 1; v = 2; } { k = 2; v = 3; } { k = 1; v = 4; } ]) ];
  lazyElements = length [ (throw "a") (throw "b") ];
  lazyMap = head (map (x: x + 1) [ 1 (throw "never") ]);
  nested = [ [ ] [ [ ] ] { } ];
  applied = [ (map (x: x) [ 1 ]) map ] == [ ] ;
}
