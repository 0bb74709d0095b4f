# What `access-manager export` prints: strings that look like interpolation are text for Nix, too.
{
  nixos = import ./exported/nixos.nix { };
  nix-darwin = import ./exported/nix-darwin.nix { lib.mkDefault = uid: uid; };
}
