# Arithmetic, comparison and logic.
{
  sum = 1 + 2 * 3 - 4;
  division = [ (7 / 2) (-7 / 2) (7 / (-2)) ];
  float = [ (1.5 + 1) (3 / 2.0) (0.5 * 4) 1.0e3 .5 ];
  negative = -(3 - 5);
  unary = 1 - -1;
  less = [ (1 < 2) (2 <= 1) (1 > 2) (2 >= 2) (1 < 1.5) ("a" < "b") ("B" < "a") ([ 1 2 ] < [ 1 3 ]) ([ 1 ] < [ 1 0 ]) ];
  logic = [ (true && false) (true || throw "lazy") (false -> throw "lazy") (false && throw "lazy") (!true) ];
  equal = [ (1 == 1.0) ("1" == 1) ([ 1 [ 2 ] ] == [ 1 [ 2 ] ]) ({ a = 1; } == { a = 1; }) ({ a = 1; } != { b = 1; })
            (null == null) (true == 1) ((x: x) == (x: x)) (./numbers.nix == ./numbers.nix) ];
  builtin = [ (builtins.add 1 2) (builtins.sub 5 7) (builtins.mul 3 4) (builtins.div 9 2) (builtins.lessThan 1 2)
              (builtins.ceil 1.2) (builtins.floor (-1.2)) (builtins.bitAnd 12 10) (builtins.bitOr 12 10) (builtins.bitXor 12 10) ];
  precedence = 1 + 1 == 2 && !false || false;
  concatRight = [ 1 ] ++ [ 2 ] ++ [ 3 ];
  updateRight = { a = 1; b = 1; } // { b = 2; } // { b = 3; };
}
