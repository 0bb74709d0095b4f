let
  name = "one";
  dir = ./files;
in
{
  read = builtins.readFile ./files/one.pub;
  joined = builtins.readFile (dir + "/one.pub");
  interpolated = builtins.readFile ./files/${name}.pub;
  upAndDown = builtins.readFile ./files/sub/../one.pub;
  here = builtins.readFile (./. + "/files/one.pub");
  imported = import ./files/set.nix;
  importedFunction = import ./files/function.nix { x = 20; };
  importedDirectory = import ./files/sub;
  exists = [ (builtins.pathExists ./files/one.pub) (builtins.pathExists ./files/nope) (builtins.pathExists ./files/sub) ];
  dir = builtins.readDir ./files;
  dirNames = map (n: baseNameOf n) (builtins.attrNames (builtins.readDir ./files/sub));
  dirOfPath = builtins.readFile (dirOf ./files/sub + "/one.pub");
  viaString = builtins.readFile (toString ./files/one.pub);
  sameImport = (import ./files/set.nix) == (import ./files/set.nix);
}
