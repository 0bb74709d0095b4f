# What Nix installs for the member is found, by every shell and also without a login: /etc/bash.bashrc and /etc/zsh/zshenv
# read this file, too. fish has /etc/fish/conf.d/nix.fish. It may be read many times. Manual pages need no
# variable: man looks beside the folders of PATH.
if [ -n "${HOME-}" ]; then
    for _dir in "$HOME/.local/state/nix/profiles/profile" "$HOME/.nix-profile"; do
        case ":${PATH-}:" in
        *":$_dir/bin:"*) ;;
        *) PATH=$_dir/bin${PATH:+:$PATH} ;;
        esac
        # An empty list stands for these two, so they have to be in a list that is not empty.
        : "${XDG_DATA_DIRS:=/usr/local/share:/usr/share}"
        case ":$XDG_DATA_DIRS:" in
        *":$_dir/share:"*) ;;
        *) XDG_DATA_DIRS=$_dir/share:$XDG_DATA_DIRS ;;
        esac
    done
    unset _dir
    export PATH XDG_DATA_DIRS
fi
# sshd sets these; here they are for whatever does not come from there.
export LANG="${LANG:-C.UTF-8}"
export NIX_SSL_CERT_FILE="${NIX_SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}"
