#!/usr/bin/env bash
# Before a commit: clean, format, lint, export, types, and the notebooks that changed.
# usage: tools/check.sh [--all]     --all runs every definition notebook
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -d .venv/bin ]; then PATH="$PWD/.venv/bin:$PATH"; fi

case "${1:-}" in
  "" | --all) ;;
  *) echo "usage: tools/check.sh [--all]" >&2; exit 2 ;;
esac

fingerprint() { find nbs talk3d tests \( -name '*.py' -o -name '*.ipynb' \) -not -path '*/.*' -print0 | sort -z | xargs -0 sha256sum; }

changed_notebooks() {
  if [ "${1:-}" = --all ] || ! git rev-parse --quiet --verify HEAD >/dev/null; then
    find nbs -maxdepth 1 -name '[0-9]*.ipynb' | sort
  else
    { git diff --name-only --diff-filter=d HEAD -- nbs; git ls-files --others --exclude-standard -- nbs; } |
      grep -E '^nbs/[^/]+\.ipynb$' | sort -u || true
  fi
}

before=$(fingerprint)
nbdev_clean
ruff format --quiet nbs tests
ruff check --quiet --output-format concise nbs tests talk3d
nbdev_export
after=$(fingerprint)
if [ "$before" != "$after" ]; then
  echo "check: these files were cleaned, formatted or exported anew; look at them, stage them and repeat:" >&2
  diff <(echo "$before") <(echo "$after") | awk '/^[<>]/ {print "  " $3}' | sort -u >&2
  exit 1
fi
mypy --no-error-summary talk3d

for notebook in $(changed_notebooks "${1:-}"); do
  echo "check: $notebook"
  nbdev_test --path "$notebook" --n_workers 0
done
echo "check: all good"
