#!/usr/bin/env bash
# Makes the virtual environment FOLDER with a Python that requirements.txt can be installed for,
# unless a whole one is there. One that an older Python made, or that was left half made, is made anew.
#   bash venv.sh .venv
set -euo pipefail
folder=${1:?usage: bash venv.sh FOLDER}
fits='import sys; sys.exit(sys.version_info < (3, 11))'

# A pyenv shim is on PATH and runs nothing, a Debian without python3-venv has no ensurepip: ask each.
can() { "$@" >/dev/null 2>&1; }

if can "$folder/bin/python" -c "$fits" && can "$folder/bin/python" -m pip --version; then
  exit 0
fi

found='' seen='none is on PATH'
for python in python3.13 python3.12 python3.11 python3; do
  version=$("$python" --version 2>/dev/null) || continue
  seen="$python is $version"
  if can "$python" -c "$fits" && can "$python" -c 'import ensurepip, venv'; then
    found=$python
    break
  fi
done
if [ -z "$found" ]; then
  cat >&2 <<END
error: no Python to make $folder with
  why: 3.11 or newer with its venv module is needed; $seen
  do:  sudo apt install python3.11 python3.11-venv (Ubuntu 22.04), brew install python@3.13 (macOS)
       or uv python install 3.13, and run this again
END
  exit 4
fi

if [ -e "$folder" ] || [ -L "$folder" ]; then
  if [ ! -e "$folder/pyvenv.cfg" ] && [ ! -e "$folder/bin" ] && [ -n "$(ls -A "$folder")" ]; then
    cat >&2 <<END
error: $folder: no virtual environment
  why: it holds files of another kind, which might be yours
  do:  move $folder away and run this again
END
    exit 2
  fi
  echo "$folder is of an older Python or half made, and is made anew"
  rm -rf "$folder"
fi
echo "making $folder with $found ($version)"
"$found" -m venv "$folder"
