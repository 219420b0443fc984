#!/usr/bin/env bash
# Both packages, built twice and compared, checked, installed and used: `make dist`. docs/release.md says what for.
set -euo pipefail
cd "$(dirname "$0")/.."
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt \
	build hatchling twine check-wheel-contents
rm -rf dist
for out in dist "$work/again"; do
	"$work/tools/bin/python" -m build --no-isolation --outdir "$out" .  # the wheel is made of the sdist
done
for package in dist/*; do
	cmp "$package" "$work/again/${package##*/}"
done
"$work/tools/bin/twine" check --strict dist/*
"$work/tools/bin/check-wheel-contents" dist/*.whl

"${PYTHON:-python3}" -m venv "$work/fresh"
"$work/fresh/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt "$(echo "$PWD"/dist/*.whl)[all]"
(cd "$work" && fresh/bin/fewstep --version && fresh/bin/fewstep compare --guidance 2 --out compare.png)
sha256sum dist/*
