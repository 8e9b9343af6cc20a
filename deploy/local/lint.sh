#!/bin/sh
# `make lint`: formatting, types, import rules, contracts. Runs everything, then fails if anything failed.
cd "$(dirname "$0")/../.." || exit 1
bin=.venv/bin
failed=""

check() {
    name=$1
    shift
    printf '%s\n' "-- $name"
    "$@" || failed="$failed $name"
}

# The contracts as they are on the main branch: what a change must not break.
base_image() {
    for branch in origin/main main; do
        base=$(git merge-base HEAD "$branch" 2>/dev/null) && break
    done
    [ -n "${base:-}" ] && git cat-file -e "$base:protos/generate.py" 2>/dev/null || return 1
    rm -rf build/base && mkdir -p build/base
    git archive "$base" protos | tar -x -C build/base || return 1
    $bin/python build/base/protos/generate.py --image build/base/contracts.binpb >/dev/null || return 1
}

check ruff $bin/ruff check .
check format $bin/ruff format --check .
check mypy $bin/mypy services libs deploy
check imports $bin/lint-imports --no-cache
check image $bin/python protos/generate.py --image build/contracts.binpb
check buf-lint $bin/buf lint build/contracts.binpb --config protos/buf.yaml
check buf-format $bin/buf format --diff --exit-code protos
if base_image; then
    check buf-breaking $bin/buf breaking build/contracts.binpb --config protos/buf.yaml --against build/base/contracts.binpb
else
    echo "-- buf-breaking: skipped, no main branch with contracts in this clone to compare with"
fi

if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
echo "all clean"
