#!/bin/sh
# slim.sh VENV: halve what a virtual environment takes in an image. Nothing in it behaves differently; a traceback
# names third-party lines without showing them.
set -eu
packages=$(echo "$1"/lib/python3.*/site-packages)

# What is there for those who build, test or debug the packages.
find "$packages" \( -name tests -o -name testing \) -type d -prune -exec rm -r {} +
find "$packages" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.[ch]' -o -name '*.[ch]pp' \) -delete
find "$packages" -name '*.so' -exec strip --strip-unneeded {} +
for dialect in mssql mysql oracle sqlite; do
    rm -rf "$packages/sqlalchemy/dialects/$dialect"
done

# Compiled modules instead of sources: the root file system of a container is read-only, so that nothing is compiled
# there for the next start.
python -m compileall -q -b "$packages"
find "$packages" -name '*.py' -delete
