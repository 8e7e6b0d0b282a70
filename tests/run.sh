#!/usr/bin/env bash
# Installs what the tests need, then runs every check and every test of rolegate.
# Usage: ./tests/run.sh [arguments for `cargo test --test it`, such as a test's name]
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Debian starts a service when its package is installed; a policy-rc.d keeps it from that.
install_redis() {
    if ! command -v apt-get >/dev/null; then
        echo "The tests run real redis-server and redis-sentinel processes: install both." >&2
        exit 1
    fi
    say "Installing redis-server and redis-sentinel"
    local policy=/usr/sbin/policy-rc.d own=
    if [ ! -e $policy ]; then
        own=1
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod +x $policy
    fi
    local failed=
    as_root apt-get update -qq || failed=1
    [ -n "$failed" ] || as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq redis-server redis-sentinel || failed=1
    [ -z "$own" ] || as_root rm -f $policy
    [ -z "$failed" ] || exit 1
}

if ! command -v redis-server >/dev/null || ! command -v redis-sentinel >/dev/null; then
    install_redis
fi
command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install a Rust toolchain (1.95 or newer)." >&2
    exit 1
fi
command -v cc >/dev/null || {
    echo "cc is missing: the Rust toolchain links with it (Debian: apt-get install gcc libc6-dev)." >&2
    exit 1
}

# A session takes three descriptors in the tests: two in rolegate, one in the test.
ulimit -n "$(ulimit -Hn)" || true
export CARGO_BUILD_JOBS="${CARGO_BUILD_JOBS:-2}"

say "Format"
cargo fmt --check
say "Lints"
cargo clippy --locked --all-targets -- -D warnings
say "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
say "Unit tests"
cargo test --locked --lib --quiet
say "Integration tests, on real Redis"
cargo test --locked --test it "$@"
