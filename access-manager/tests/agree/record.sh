#!/bin/sh
# Records what real Nix answers, beside each question. Needs a Nix (any from 2.8) and, for lib-*.nix and community.nix,
# a copy of nixpkgs' `lib` folder:
#
#   NIX_INSTANTIATE=/path/to/nix-instantiate NIXPKGS_LIB=/path/to/nixpkgs/lib tests/agree/record.sh
#
# No store is needed: NIX_REMOTE=dummy:// is enough.
set -eu
cd "$(dirname "$0")"
: "${NIX_INSTANTIATE:=nix-instantiate}" "${NIX_REMOTE:=dummy://}"
export NIX_REMOTE
for question in *.nix; do
  set -- --eval --strict --json "./$question"
  if grep -q '^{ lib' "$question"; then
    [ -n "${NIXPKGS_LIB:-}" ] || { echo "skipped $question: NIXPKGS_LIB is not set" >&2; continue; }
    set -- "$@" --arg lib "import $NIXPKGS_LIB"
  fi
  "$NIX_INSTANTIATE" "$@" > "${question%.nix}.json.new"
  mv "${question%.nix}.json.new" "${question%.nix}.json"
  echo "recorded $question"
done
