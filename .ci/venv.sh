# Sourced by examples/quickstart.sh, tests/run.sh and .ci/run from the repository's root.
#
#     install_project EXTRA
#
# makes or reuses the virtual environment .venv and installs this project with an extra into it, in the versions of
# constraints.txt. PYTHON names the Python to make it with (default: python3).

install_project() {
    local python="${PYTHON:-python3}" extra="$1"
    if ! .venv/bin/python -c '' 2> /dev/null; then
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1): set PYTHON, e.g. PYTHON=python3.12" >&2
            return 1
        fi
        # Debian's Python comes without ensurepip; its own pip then installs into the environment.
        "$python" -m venv --clear .venv > /dev/null 2>&1 || "$python" -m venv --clear --without-pip .venv
    fi

    # What is installed is noted, so that the next run starts at once; dev holds all extras.
    local wanted
    wanted="$(cat pyproject.toml constraints.txt | cksum) $PWD"
    if ! grep -qsxF "$wanted" ".venv/installed-$extra" .venv/installed-dev; then
        local pip=(.venv/bin/python -m pip)
        .venv/bin/python -c 'import pip' 2> /dev/null || pip=("$python" -m pip --python .venv/bin/python)
        echo "Installing blda-cli[$extra] into .venv; the first time this takes a few minutes." >&2
        "${pip[@]}" install --quiet -c constraints.txt -e ".[$extra]"
        echo "$wanted" > ".venv/installed-$extra"
    fi
}
