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
#
# The people below are examples. Their private keys were thrown away when this file was written, so nobody gets in
# as one of them: replace them when you run a box of your own.
{
  alice = {
    keys = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl alice@laptop";
    # Sees what every member uses, and sees and cancels every member's builds.
    role = "maintainer";
  };

  bob = {
    keys = [
      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILzCIdzYczmmlDk8ussjhaNUDX+Jf/bMsqNAWcdAohZz bob@desk"
      "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBKUXgK/excxzv6Z0kYVoHqxxSSZGosNR17+hTJGOWBV609KWDd3K6YrpqQIH/eh+NaqsjWeYuV8uKSZDPUoidco= bob@phone"
    ];
    # All limits are optional; the box's own limits apply in any case.
    limits = {
      maxJobs = 2;
      maxMemoryMib = 4096;
      maxBuildSeconds = 2 * 60 * 60;
    };
    # The last day (UTC) on which bob gets in.
    expires = "2030-01-01";
  };
}
