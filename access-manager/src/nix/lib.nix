# The part of nixpkgs' `lib` that rosters use, with the same meaning. Each function is written from its documentation
# (nixpkgs manual, "Functions reference"); tests/agree compares them with the real one. Add a function only when a real
# roster needs it.
#
# Besides the builtins this file sees `splitString`, `trim`, `hasInfix` and `toInt` from natives_text.rs.
let
  lib = rec {
    inherit (builtins)
      add all any attrNames attrValues baseNameOf bitAnd bitOr bitXor catAttrs ceil concatLists concatMap
      concatStringsSep deepSeq dirOf elem elemAt filter floor fromJSON functionArgs genList getAttr groupBy hasAttr
      head intersectAttrs isAttrs isBool isFloat isFunction isInt isList isPath isString length lessThan listToAttrs
      map mapAttrs mul partition pathExists readDir readFile removeAttrs replaceStrings seq sort stringLength sub
      substring tail toJSON toString trace tryEval typeOf zipAttrsWith;
    inherit splitString hasInfix toInt trim;

    # The same functions under the names of their files.
    attrsets = lib;
    lists = lib;
    strings = lib;
    trivial = lib;
    modules = lib;

    # trivial
    id = x: x;
    const = x: _: x;
    flip = f: a: b: f b a;
    pipe = foldl' (x: f: f x);
    and = x: y: x && y;
    or = x: y: x || y;
    not = x: !x;
    xor = x: y: (!x) != (!y);
    boolToString = b: if b then "true" else "false";
    min = x: y: if x < y then x else y;
    max = x: y: if x > y then x else y;
    mod = base: int: base - (int * (builtins.div base int));
    compare = a: b: if a < b then -1 else if a > b then 1 else 0;
    importJSON = path: builtins.fromJSON (builtins.readFile path);
    throwIf = bad: text: if bad then throw text else x: x;
    throwIfNot = good: text: throwIf (!good) text;
    assertMsg = good: text: good || throw text;
    warn = _: x: x;
    warnIf = _: _: x: x;
    info = _: x: x;
    defaultTo = default: x: if x == null then default else x;
    mapNullable = f: x: if x == null then null else f x;
    toFunction = v: if isFunction v then v else _: v;

    # lists
    foldl' = op: acc: builtins.foldl' op acc;
    foldl = op: nul: list:
      let go = n: if n == -1 then nul else op (go (n - 1)) (elemAt list n);
      in go (length list - 1);
    foldr = op: nul: list:
      let
        len = length list;
        go = n: if n == len then nul else op (elemAt list n) (go (n + 1));
      in go 0;
    fold = foldr;
    singleton = x: [ x ];
    toList = x: if isList x then x else [ x ];
    forEach = xs: f: map f xs;
    optional = cond: x: if cond then [ x ] else [ ];
    optionals = cond: xs: if cond then xs else [ ];
    flatten = x: if isList x then concatMap flatten x else [ x ];
    remove = e: filter (x: x != e);
    last = list:
      if list == [ ] then throw "lists.last: list must not be empty!" else elemAt list (length list - 1);
    init = list:
      if list == [ ] then throw "lists.init: list must not be empty!" else take (length list - 1) list;
    sublist = start: count: list:
      let len = length list;
      in genList (n: elemAt list (n + start))
        (if start >= len then 0 else if start + count > len then len - start else count);
    take = count: sublist 0 count;
    drop = count: list: sublist count (length list) list;
    reverseList = xs: let l = length xs; in genList (n: elemAt xs (l - n - 1)) l;
    imap0 = f: list: genList (n: f n (elemAt list n)) (length list);
    imap1 = f: list: genList (n: f (n + 1) (elemAt list n)) (length list);
    range = first: last: if first > last then [ ] else genList (n: first + n) (last - first + 1);
    replicate = n: x: genList (_: x) n;
    count = pred: foldl' (c: x: if pred x then c + 1 else c) 0;
    findFirst = pred: default: list:
      let found = filter pred list; in if found == [ ] then default else head found;
    findSingle = pred: default: multiple: list:
      let found = filter pred list; len = length found;
      in if len == 0 then default else if len != 1 then multiple else head found;
    unique = foldl' (acc: e: if elem e acc then acc else acc ++ [ e ]) [ ];
    allUnique = list: length (unique list) == length list;
    subtractLists = e: filter (x: !(elem x e));
    intersectLists = e: filter (x: elem x e);
    mutuallyExclusive = a: b: length a == 0 || !(any (x: elem x a) b);
    zipListsWith = f: a: b: genList (n: f (elemAt a n) (elemAt b n)) (min (length a) (length b));
    zipLists = zipListsWith (fst: snd: { inherit fst snd; });
    sortOn = f: sort (a: b: f a < f b);
    groupBy' = op: nul: pred: list: mapAttrs (_: foldl' op nul) (groupBy pred list);
    crossLists = f: foldl (fs: args: concatMap (f: map f args) fs) [ f ];

    # attribute sets
    nameValuePair = name: value: { inherit name value; };
    mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    attrsToList = mapAttrsToList nameValuePair;
    concatMapAttrs = f: set: mergeAttrsList (attrValues (mapAttrs f set));
    filterAttrs = pred: set: removeAttrs set (filter (name: !(pred name set.${name})) (attrNames set));
    genAttrs = names: f: genAttrs' names (name: nameValuePair name (f name));
    genAttrs' = xs: f: listToAttrs (map f xs);
    optionalAttrs = cond: set: if cond then set else { };
    mergeAttrs = a: b: a // b;
    mergeAttrsList = foldl' mergeAttrs { };
    foldlAttrs = f: acc: set: foldl' (acc: name: f acc name set.${name}) acc (attrNames set);
    zipAttrs = zipAttrsWith (_: values: values);
    attrVals = names: set: map (name: set.${name}) names;
    getAttrs = names: set: genAttrs names (name: set.${name});
    hasAttrByPath = path: set:
      path == [ ] || (set ? ${head path} && hasAttrByPath (tail path) set.${head path});
    attrByPath = path: default: set:
      if path == [ ] then set
      else if isAttrs set && set ? ${head path} then attrByPath (tail path) default set.${head path}
      else default;
    getAttrFromPath = path: set:
      attrByPath path (throw ("cannot find attribute `" + concatStringsSep "." path + "'")) set;
    setAttrByPath = path: value:
      if path == [ ] then value else { ${head path} = setAttrByPath (tail path) value; };
    recursiveUpdateUntil = pred: a: b:
      let
        go = path: zipAttrsWith (name: values:
          let here = path ++ [ name ];
          in if length values == 1 || pred here (elemAt values 1) (head values)
            then head values else go here values);
      in go [ ] [ b a ];
    recursiveUpdate = recursiveUpdateUntil (_: a: b: !(isAttrs a && isAttrs b));
    collect = pred: set:
      if pred set then [ set ] else if isAttrs set then concatMap (collect pred) (attrValues set) else [ ];
    foldAttrs = op: nul: sets:
      foldr (set: acc: foldr (name: acc: acc // { ${name} = op set.${name} (acc.${name} or nul); }) acc
        (attrNames set)) { } sets;

    # strings
    concatStrings = concatStringsSep "";
    concatMapStrings = f: list: concatStrings (map f list);
    concatMapStringsSep = sep: f: list: concatStringsSep sep (map f list);
    concatImapStringsSep = sep: f: list: concatStringsSep sep (imap1 f list);
    concatLines = concatMapStrings (s: s + "\n");
    intersperse = sep: list:
      if list == [ ] || length list == 1 then list
      else tail (concatMap (x: [ sep x ]) list);
    optionalString = cond: s: if cond then s else "";
    hasPrefix = pre: s: substring 0 (stringLength pre) s == pre;
    hasSuffix = suf: s:
      let len = stringLength s; n = stringLength suf;
      in len >= n && substring (len - n) len s == suf;
    removePrefix = pre: s: if hasPrefix pre s then substring (stringLength pre) (-1) s else s;
    removeSuffix = suf: s:
      if hasSuffix suf s then substring 0 (stringLength s - stringLength suf) s else s;
    fileContents = file: removeSuffix "\n" (builtins.readFile file);
    stringToCharacters = s: genList (n: substring n 1 s) (stringLength s);
    lowerChars = stringToCharacters "abcdefghijklmnopqrstuvwxyz";
    upperChars = stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    toLower = replaceStrings upperChars lowerChars;
    toUpper = replaceStrings lowerChars upperChars;
    replaceChars = replaceStrings;
    fixedWidthString = width: filler: s:
      if stringLength s >= width then s else fixedWidthString width filler (filler + s);
    isStringLike = x: isString x || isPath x;

    # modules: only what definitions in rosters need; access-manager reads the results
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkMerge = contents: { _type = "merge"; inherit contents; };
    mkOverride = priority: content: { _type = "override"; inherit priority content; };
    mkOptionDefault = mkOverride 1500;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkOrder = priority: content: { _type = "order"; inherit priority content; };
    mkBefore = mkOrder 500;
    mkAfter = mkOrder 1500;
    mkOption = attrs: attrs // { _type = "option"; };
    mkEnableOption = name: mkOption { default = false; description = name; };
  };
in
lib
