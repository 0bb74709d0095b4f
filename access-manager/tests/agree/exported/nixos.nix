# Made by `access-manager export` from the roster; changes belong there.
#
# Every member can log in as `nix-builder` and use this machine's Nix daemon. Sending inputs that the daemon cannot check
# needs `nix.settings.trusted-users = [ "nix-builder" ];`, which makes every member as powerful as root: your decision.
{ ... }:
{
  services.openssh.enable = true;
  users.groups.nix-builder = { };
  users.users.nix-builder = {
    isSystemUser = true;
    group = "nix-builder";
    # sshd runs `nix-daemon --stdio` and `nix-store --serve` with the account's shell.
    useDefaultShell = true;
    openssh.authorizedKeys.keys = [
      "restrict,expiry-time=\"20280229235959Z\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl a"
      "restrict,expiry-time=\"20280229235959Z\" ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQCtMCyyLsplbp0TvwIemcWQL4OYrVHeVIwzkKE728fKwLqoIqgmVdz1QcSil+35eW7lXlZIizI44UkQiCVxktyHweMaHeuXHcHYctTkYLb+fJfZjgnd2LsPdf2Y+AysxmpQY43KG0M2vXbpxSCuhtYvKEoJPXXzEKo0VK65uYZAP+PrxcscP5FnWzO+Ovpg+MinIwsOJnZ8+wqndUU1vPCrMpGxKcb4tXJRH49Mfq+cgx5+lKyT39IKLTf5BBg7/GHS0WPK1PpuWpZ2WkmFs/IuQFMXeVv8XRHEcCKx+edhs4fbufl4tUuoER9XqK+O49b9aVLFuzbUJO7fm8KW4JGcehAxPCJpn5GSuJoJyib23IpmAVFlqTXmP7NrbmP7xNapLjLUTNkIXDFNel95dwjS4+dAKuwR3AQLzFeygeS90BaPZ+mzBoppYSa/sFVRnB1GkIUqRBG+160RZ0SBhcmYiX4D7AZ4m7/0Z9jwvhVp9qaAWvHotW3tIgxk0sqji8k= a"
      "restrict,cert-authority,principals=\"\${x},$\${y},$$,$\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILzCIdzYczmmlDk8ussjhaNUDX+Jf/bMsqNAWcdAohZz b"
      "restrict,from=\"192.0.2.0/24\" ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBKUXgK/excxzv6Z0kYVoHqxxSSZGosNR17+hTJGOWBV609KWDd3K6YrpqQIH/eh+NaqsjWeYuV8uKSZDPUoidco= c"
    ];
  };
}
