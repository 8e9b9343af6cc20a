#!/bin/sh
# `make scan`: known flaws of the locked packages, secrets in the files, and a bill of materials in build/.
# A source of advisories that cannot be reached is said and is no failure; a flaw or a new secret is one.
cd "$(dirname "$0")/../.." || exit 1
bin=.venv/bin
failed=""
mkdir -p build

echo "-- secrets: nothing in the files that is not in .secrets.baseline"
# Names beside references to secrets (`secretName: tls-tenant`) and made-up ones in tests are in the baseline, by hash.
# A first pass may fail for lines that moved only: it writes their new numbers into its baseline, here a copy.
cp .secrets.baseline build/secrets.baseline
secrets() { git ls-files -z | xargs -0 $bin/detect-secrets-hook --no-verify --baseline build/secrets.baseline; }
if ! secrets >/dev/null && ! secrets; then
    echo "A made-up one for a test is added with: $bin/detect-secrets scan --no-verify --baseline .secrets.baseline"
    failed="$failed secrets"
fi

echo "-- bill of materials"
$bin/cyclonedx-py requirements --output-reproducible --output-format JSON -o build/sbom.cdx.json requirements.lock || failed="$failed sbom"
[ -s build/sbom.cdx.json ] && echo "build/sbom.cdx.json: $(grep -c '"purl"' build/sbom.cdx.json) packages"

echo "-- known flaws of the locked packages"
if $bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --vulnerability-service osv --progress-spinner off \
    --timeout 10 --format json --output build/advisories.json 2>build/pip-audit.log; then
    echo "none; build/advisories.json"
elif grep -q -E 'ConnectionError|ConnectTimeout|ReadTimeout|ServiceError' build/pip-audit.log; then
    echo "NOT CHECKED: api.osv.dev cannot be reached from here; run this where it can be"
else
    tail -n 40 build/pip-audit.log
    failed="$failed advisories"
fi

if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
echo "scan: done"
