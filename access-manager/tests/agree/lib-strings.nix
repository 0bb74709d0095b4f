{ lib, ... }:
with lib;
{
  concat = [ (concatStrings [ "a" "b" ]) (concatStringsSep "," [ "a" "b" ]) (concatMapStrings (x: x + ".") [ "a" "b" ]) (concatMapStringsSep "-" toUpper [ "a" "b" ]) (concatLines [ "a" "b" ]) ];
  optional = [ (optionalString true "x") (optionalString false "x") ];
  fixes = [ (hasPrefix "a" "abc") (hasPrefix "b" "abc") (hasSuffix "c" "abc") (hasSuffix "abcd" "abc") (hasInfix "b" "abc") (hasInfix "." "abc") ];
  removed = [ (removePrefix "ab" "abc") (removePrefix "x" "abc") (removeSuffix ".pub" "a.pub") (removeSuffix "x" "abc") ];
  split = [ (splitString "," "a,b,,c") (splitString "\n" "a\nb\n") (splitString "ab" "xabyab") (splitString "." "none") ];
  cases = [ (toUpper "aBc1") (toLower "aBc1") ];
  chars = stringToCharacters "abc";
  trimmed = trim " \t a b \n";
  contents = fileContents ./files/one.pub;
  ints = [ (toInt "12") (toInt "-3") ];
  fixed = fixedWidthString 5 "0" "42";
  between = intersperse "," [ "a" "b" "c" ];
  replaced = replaceStrings [ "a" ] [ "b" ] "banana";
  strings = strings.concatStringsSep "" [ "x" ];
}
