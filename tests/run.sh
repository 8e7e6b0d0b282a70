#!/usr/bin/env bash
# Installs what the tests need, then runs every check and every test of rolegate.
# Usage: ./tests/run.sh [arguments for `cargo test --test it`, such as a test's name]
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "Tools"
./examples/quickstart.sh --install
command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install a Rust toolchain (1.95 or newer)." >&2
    exit 1
fi

# A session takes three descriptors in the tests: two in rolegate, one in the test.
ulimit -n "$(ulimit -Hn)" || true
export CARGO_BUILD_JOBS="${CARGO_BUILD_JOBS:-2}"

say "Format"
cargo fmt --check
say "Lints"
cargo clippy --locked --all-targets -- -D warnings
say "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
if cargo deny --version >/dev/null 2>&1; then
    say "Licenses, bans and sources of what is built in"
    # Advisories come from the network: `cargo deny check advisories`.
    cargo deny --offline check licenses bans sources
fi
say "Unit tests"
cargo test --locked --lib --quiet
say "Integration tests, on real Redis"
cargo test --locked --test it "$@"
