# Sourced by examples/quickstart.sh, tests/run.sh and .ci/run from the repository's root.
#
#     install_project [GROUP]
#
# makes or reuses the virtual environment .venv and installs this project into it, in the versions of constraints.txt;
# with a dependency group of pyproject.toml, that group and all extras too. PYTHON names the Python to make it with
# (default: python3).

install_project() {
    local python="${PYTHON:-python3}" group="${1:-}" what=(-e .)
    [ -z "$group" ] || what=(-e ".[all]" --group "$group")
    if ! .venv/bin/python -c '' 2> /dev/null; then
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1): set PYTHON, e.g. PYTHON=python3.12" >&2
            return 1
        fi
        # Debian's Python comes without ensurepip; its own pip then installs into the environment.
        "$python" -m venv --clear .venv > /dev/null 2>&1 || "$python" -m venv --clear --without-pip .venv
    fi

    # What is installed is noted, so that the next run starts at once; dev holds everything.
    local wanted
    wanted="$(cat pyproject.toml constraints.txt | cksum) $PWD"
    if ! grep -qsxF "$wanted" ".venv/installed-$group" .venv/installed-dev; then
        local pip=(.venv/bin/python -m pip)
        .venv/bin/python -c 'import pip' 2> /dev/null || pip=("$python" -m pip --python .venv/bin/python)
        echo "Installing blda-cli${group:+ and the group $group} into .venv; the first time this takes a few minutes." >&2
        "${pip[@]}" install --quiet -c constraints.txt pip # an older one does not know dependency groups
        .venv/bin/python -m pip install --quiet -c constraints.txt "${what[@]}"
        echo "$wanted" > ".venv/installed-$group"
    fi
}
