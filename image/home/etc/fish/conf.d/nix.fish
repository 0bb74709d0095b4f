# The same as /etc/profile.d/nix.sh, for every fish.
if set -q HOME
    set -q XDG_DATA_DIRS[1]; or set XDG_DATA_DIRS /usr/local/share /usr/share
    # From here on a list: fish takes the variable of another program as one word.
    set -gx --path XDG_DATA_DIRS $XDG_DATA_DIRS
    for dir in $HOME/.local/state/nix/profiles/profile $HOME/.nix-profile
        contains -- $dir/bin $PATH; or set -gx PATH $dir/bin $PATH
        contains -- $dir/share $XDG_DATA_DIRS; or set XDG_DATA_DIRS $dir/share $XDG_DATA_DIRS
    end
end
set -q LANG[1]; or set -gx LANG C.UTF-8
set -q NIX_SSL_CERT_FILE[1]; or set -gx NIX_SSL_CERT_FILE /etc/ssl/certs/ca-certificates.crt
if status is-interactive
    set -g fish_greeting
    direnv hook fish | source
end
