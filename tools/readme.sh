#!/usr/bin/env bash
# README.md from nbs/index.ipynb: tools/readme.sh [FOLDER], the repository by default.
# Cells that start with `#| hide` are left out; pictures go to docs/images/, and paths begin at
# the repository instead of nbs/.
set -euo pipefail
cd "$(dirname "$0")/.."
jupyter nbconvert --log-level=WARN --to markdown nbs/index.ipynb \
  --output README --output-dir "${1:-.}" \
  --NbConvertApp.output_files_dir=docs/images \
  --RegexRemovePreprocessor.patterns='#\|\s*hide'
readme=${1:-.}/README.md
sed -i.before 's#](\.\./#](#g' "$readme" && rm "$readme.before"
