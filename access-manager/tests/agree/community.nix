# The shape of a large community's list: a module, users mapped to NixOS users.
{ lib, ... }:
let
  users = {
    "0x4A6F" = { trusted = true; keys = ./files/one.pub; };
    alice.keys = ./files/one.pub;
  };
  ifAttr = key: default: result: opts: if (opts ? "${key}") && opts."${key}" then result else default;
  maybeTrusted = ifAttr "trusted" [ ] [ "trusted" ];
  toUser = name: opts: {
    isNormalUser = true;
    extraGroups = maybeTrusted opts;
    home = "/home/${name}";
    hashedPassword = opts.password or null;
    openssh.authorizedKeys.keys = lib.splitString "\n" (builtins.readFile opts.keys);
  };
in
{
  users = {
    mutableUsers = false;
    users = lib.mapAttrs toUser users // builtins.listToAttrs (map (n: lib.nameValuePair n { home = "/${n}"; }) [ "x" ]);
  };
}
