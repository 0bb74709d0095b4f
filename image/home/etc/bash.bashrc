# Every bash reads this that is interactive, and the one that sshd starts for a command (`ssh box COMMAND`). The home directory
# starts empty, so the comfort is here; ~/.bashrc is read afterwards.
. /etc/profile.d/nix.sh

[ -z "${PS1-}" ] && return

shopt -s checkwinsize histappend
HISTCONTROL=ignoreboth
HISTSIZE=10000
HISTFILESIZE=100000
PS1='\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
[ "${TERM-}" = dumb ] && PS1='\u@\h:\w\$ '
alias ls='ls --color=auto' ll='ls -l --color=auto' grep='grep --color=auto'

if ! shopt -oq posix; then
    . /usr/share/bash-completion/bash_completion
    eval "$(direnv hook bash)"
fi
