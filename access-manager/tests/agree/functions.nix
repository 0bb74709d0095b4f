let
  f = { a, b ? a + 1, ... }@args: [ a b (args.c or "no c") ];
  g = args@{ x ? 1 }: x;
  curry = x: y: z: x + y * z;
  fix = f: let x = f x; in x;
  fac = n: if n < 2 then 1 else n * fac (n - 1);
  even = n: n == 0 || odd (n - 1);
  odd = n: n != 0 && even (n - 1);
in
{
  formals = [ (f { a = 1; }) (f { a = 1; b = 5; c = 6; }) (g { }) (g { x = 2; }) ];
  curried = curry 1 2 3;
  partial = map (curry 1 2) [ 1 2 3 ];
  fixed = (fix (self: { a = 1; b = self.a + 1; })).b;
  recursion = [ (fac 10) (even 100) ];
  withScope = let x = "let"; set = { x = "with"; y = "y"; }; in with set; [ x y ];
  innerWith = with { a = 1; b = 1; }; with { b = 2; }; [ a b ];
  withBuiltins = with { map = "mine"; foo = "foo"; }; [ (builtins.typeOf map) foo ];
  asserted = assert 1 < 2; "ok";
  letShadow = let x = 1; in let x = 2; y = x; in y;
  args = builtins.functionArgs ({ a, b ? 1 }: a);
  tried = [ (builtins.tryEval (throw "x")).success (builtins.tryEval 5) (builtins.tryEval (assert false; 1)).success ];
  seq = builtins.seq 1 2;
  deepSeq = builtins.deepSeq { a = [ 1 ]; } 3;
  ifs = if true then "yes" else throw "no";
  isX = [ (builtins.isAttrs { }) (builtins.isList [ ]) (builtins.isString "") (builtins.isInt 1) (builtins.isFloat 1.0)
          (builtins.isBool true) (builtins.isFunction map) (builtins.isPath ./.) (isNull null) ];
  underscored = __length [ 1 2 ];
}
