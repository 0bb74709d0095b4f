# An interactive bash that is a login shell reads ~/.bashrc only if a file such as ~/.profile says so. A new home has none, and
# dotfiles may bring ~/.bashrc alone.
if [ -n "${BASH_VERSION-}" ] && [ -n "${PS1-}" ] && [ -r "${HOME-}/.bashrc" ] &&
    [ ! -e "$HOME/.bash_profile" ] && [ ! -e "$HOME/.bash_login" ] && [ ! -e "$HOME/.profile" ]; then
    . "$HOME/.bashrc"
fi
