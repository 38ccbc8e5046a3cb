#!/bin/sh
# Prints the path of a working Python VERSION (such as 3.13), from the PATH or from pyenv. Fails silently without one.
#
# usage: find-python.sh VERSION
for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    if "$python" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
        "$python" -c 'import sys; print(sys.executable)'
        exit
    fi
done
exit 1
