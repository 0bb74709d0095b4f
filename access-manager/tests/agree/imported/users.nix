# Who may build on this box. To join:
#
#   1. Take the PUBLIC half of an ssh key: the one line in ~/.ssh/id_ed25519.pub. No such file? Make one with
#      `ssh-keygen -t ed25519`. Never put a file here whose name does not end in .pub.
#
#   2. Add yourself below, in alphabetical order. These lines are all it takes:
#
#        yourname = {
#          keys = "ssh-ed25519 AAAA… yourname@laptop";
#        };
#
#      With more than one key, write `keys = [ "…" "…" ];`, or put them into a file, one per line, and name it:
#      `keys = ./path/to/yourname.pub;`.
#
#   3. Check it: `access-manager check users.nix`. A mistake is shown with its line.
#
#   4. Open a pull request. Once it is merged you can build within a minute; no restart, no further login.
#
# Everything else (roles, limits, groups, dates, other shapes) is in docs/reference/roster.md of Barnraiser.
{
  "0x4A6F" = {
    keys = [
      "cert-authority,principals=\"\${x},$\${y},$$,$\" ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBKUXgK/excxzv6Z0kYVoHqxxSSZGosNR17+hTJGOWBV609KWDd3K6YrpqQIH/eh+NaqsjWeYuV8uKSZDPUoidco= ''\${z}''"
      "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQCtMCyyLsplbp0TvwIemcWQL4OYrVHeVIwzkKE728fKwLqoIqgmVdz1QcSil+35eW7lXlZIizI44UkQiCVxktyHweMaHeuXHcHYctTkYLb+fJfZjgnd2LsPdf2Y+AysxmpQY43KG0M2vXbpxSCuhtYvKEoJPXXzEKo0VK65uYZAP+PrxcscP5FnWzO+Ovpg+MinIwsOJnZ8+wqndUU1vPCrMpGxKcb4tXJRH49Mfq+cgx5+lKyT39IKLTf5BBg7/GHS0WPK1PpuWpZ2WkmFs/IuQFMXeVv8XRHEcCKx+edhs4fbufl4tUuoER9XqK+O49b9aVLFuzbUJO7fm8KW4JGcehAxPCJpn5GSuJoJyib23IpmAVFlqTXmP7NrbmP7xNapLjLUTNkIXDFNel95dwjS4+dAKuwR3AQLzFeygeS90BaPZ+mzBoppYSa/sFVRnB1GkIUqRBG+160RZ0SBhcmYiX4D7AZ4m7/0Z9jwvhVp9qaAWvHotW3tIgxk0sqji8k= $\${x} $"
    ];
    vouchedBy = [ "let" "or" ];
    expires = "2030-01-01";
  };

  "a.b-c" = {
    keys = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILzCIdzYczmmlDk8ussjhaNUDX+Jf/bMsqNAWcdAohZz # } ; /* ]";
    limits = {
      maxJobs = 2;
      maxCpus = 3;
    };
    shareWith = [ "if" ];
  };

  "if" = {
    keys = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl \${builtins.abort \"x\"} \\\${y} \\\\ \" ''";
  };
}
