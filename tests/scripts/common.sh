# Sourced by the scripts beside it: where things are, and steps that say what they do and how long it took.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
static_target=x86_64-unknown-linux-gnu
image=${image:-$target/image}

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

started=$SECONDS
steps=0
# step WHAT COMMAND...: names the step, runs it, and says how long it took.
step() {
    local what=$1 begin=$SECONDS
    shift
    steps=$((steps + 1))
    printf '\n==> %s%s (%d s since the start)\n' "$steps${of:+ of $of}: " "$what" "$((SECONDS - started))"
    "$@"
    printf '    done: %s, %d s\n' "$what" "$((SECONDS - begin))"
}

# die MESSAGE HINT
die() {
    printf 'error: %s\nhint:  %s\n' "$1" "$2" >&2
    exit 1
}

# introduce_client STATE: lets the client whose home is STATE/client reach the box of STATE as `ssh box`.
introduce_client() {
    local state=$1
    mkdir -p "$state/client/.ssh"
    cp "$state/key" "$state/client/.ssh/id_ed25519"
    sed -e "s#$state/key#/root/.ssh/id_ed25519#" -e 's#UserKnownHostsFile .*#UserKnownHostsFile /root/.ssh/known_hosts#' \
        "$state/ssh_config" > "$state/client/.ssh/config"
    # A new boot without a disk is a new identity; this client trusts the one it meets first.
    rm -f "$state/client/.ssh/known_hosts"
}
