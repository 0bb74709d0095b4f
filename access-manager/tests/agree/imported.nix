# What `access-manager import` prints: names and strings that look like code are text for Nix, too.
import ./imported/users.nix
