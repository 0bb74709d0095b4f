# Sourced by the scripts beside it: where things are, and steps that say what they do and how long it took.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
static_target=x86_64-unknown-linux-gnu
image=${image:-$target/image}

# A registry may refuse a connection now and then; cargo's own default is three tries.
export CARGO_NET_RETRY=${CARGO_NET_RETRY:-6}

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

# more_settings STATE: the box of STATE/image has settings besides the usual ones, read from the input.
more_settings() {
    mkdir -p "$1/rootfs/etc"
    cat "$root/image/rootfs/etc/builder-agent.toml" - > "$1/rootfs/etc/builder-agent.toml"
}

# image_with STATE ARG...: makes the release STATE/image, with the files of STATE/rootfs. ARG: for `netboot-image build`.
image_with() {
    local state=$1
    shift
    $sudo "$target/release/netboot-image" build --out "$state/image" --users users.nix \
        --rootfs image/rootfs --rootfs "$state/rootfs" "$@"
}

# image_with_unit STATE NAME ARG...: the same, and its box has one unit more, NAME.service, read from the input.
image_with_unit() {
    local state=$1 name=$2 units=$1/rootfs/etc/systemd/system
    shift 2
    mkdir -p "$units/multi-user.target.wants"
    cat > "$units/$name.service"
    ln -sf "../$name.service" "$units/multi-user.target.wants/$name.service"
    image_with "$state" "$@"
}

# crates COMMAND...: cargo, with its count of crates. On a terminal that is cargo's own bar; elsewhere a line now and
# then takes the place of a line per crate. What cargo says besides (warnings, errors) comes through.
crates() {
    if [ -t 2 ]; then
        cargo "$@"
        return
    fi
    { CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=120 cargo "$@" 2>&1 >&3 | count_crates; } 3>&1
}

# Cargo moves its bar with returns: `   Building [====>    ] 120/412: name, name...` (no word before it with `-q`).
count_crates() {
    local bar='\[[=> ]*\] ([0-9]+)/([0-9]+)' chunk line last=$SECONDS begin=$SECONDS end=
    while [ -z "$end" ]; do
        IFS= read -r -d $'\r' chunk || end=1
        while IFS= read -r line; do
            if [[ $line =~ $bar ]]; then
                if [ $((SECONDS - last)) -ge 15 ]; then
                    last=$SECONDS
                    printf '    crates: %s of %s, %d s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" $((SECONDS - begin))
                fi
            elif ! [[ $line =~ ^\ *(Compiling|Checking|Fresh|Downloaded|Downloading|Executable)\  || $line =~ ^[[:space:]]*$ ]]; then
                printf '%s\n' "$line"
            fi
        done <<<"${chunk//$'\e[K'/}"
    done >&2
}

# The program that downloads and unpacks Debian packages, built when it is not there or from before it could.
image_tool=$target/release/netboot-image
need_image_tool() {
    if "$image_tool" fetch --help >/dev/null 2>&1; then return; fi
    echo "building netboot-image, which downloads what is needed"
    (cd "$root" && crates build --release -p netboot-image)
}
