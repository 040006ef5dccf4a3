#!/bin/sh
# Installs the edgefleet agent on a Linux device, or brings it up to date; may be run again at any
# time. What it makes: the user edgefleet, a virtual environment in /opt/edgefleet, the store
# /var/lib/edgefleet with an agent.toml to begin with, a systemd unit, and a link in /usr/local/bin.
set -eu

usage() {
    cat <<'TEXT'
usage: install.sh [--runtime NAME] [--wheels DIR] [--python PATH] [--root DIR] [--no-unit]
       install.sh --uninstall [--purge] [--root DIR]

  --runtime NAME   onnxruntime (default), litert, or both with a comma
  --wheels DIR     install from this folder of wheels, without a network
  --python PATH    Python 3.11 or newer (default: python3)
  --root DIR       install into this folder instead of /; makes no user and starts nothing
  --no-unit        leave the systemd unit to a package
  --uninstall      remove the program; the store with identity and models stays
  --purge          with --uninstall: remove the store and the user too
TEXT
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
root= runtime=onnxruntime wheels= python=python3 unit=yes action=install purge=no
while [ $# -gt 0 ]; do
    case "$1" in
        --runtime|--wheels|--python|--root)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case "$1" in
                --runtime) runtime=$2 ;;
                --wheels) wheels=$2 ;;
                --python) python=$2 ;;
                --root) root=${2%/} ;;
            esac
            shift
            ;;
        --no-unit) unit=no ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        -h|--help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done

program=$root/opt/edgefleet
store=$root/var/lib/edgefleet
unit_file=$root/etc/systemd/system/edgefleet-agent.service
link=$root/usr/local/bin/edgefleet-agent

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "run it as root, or with --root DIR"

# systemctl, where this is the running system and systemd runs it.
control() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl "$@"
    fi
}

install_agent() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python 3.11 or newer; name one with --python"
    [ -z "$wheels" ] || [ -d "$wheels" ] || fail "no folder $wheels"

    if [ -z "$root" ] && ! id edgefleet >/dev/null 2>&1; then
        useradd --system --user-group --home-dir "$store" --shell /usr/sbin/nologin edgefleet
    fi

    if [ ! -x "$program/bin/python" ]; then
        mkdir -p "$(dirname "$program")"
        "$python" -m venv "$program" ||
            fail "no virtual environment (on Debian: apt install python3-venv)"
    fi
    if [ -n "$wheels" ]; then
        "$program/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
            --no-index --find-links "$wheels" "edgefleet-agent[$runtime,server]"
    else
        "$program/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
            "edgefleet-agent[$runtime,server]"
    fi

    mkdir -p "$store" "$(dirname "$link")"
    chmod 750 "$store"
    [ -e "$store/agent.toml" ] || cp "$here/agent.toml" "$store/agent.toml"
    [ -n "$root" ] || chown edgefleet:edgefleet "$store" "$store/agent.toml"
    ln -sfn /opt/edgefleet/bin/edgefleet-agent "$link"

    if [ "$unit" = yes ]; then
        mkdir -p "$(dirname "$unit_file")"
        cp "$here/edgefleet-agent.service" "$unit_file"
        chmod 644 "$unit_file"
        control daemon-reload
    fi
    if [ -e "$store/identity/hub.json" ]; then
        control enable edgefleet-agent
        control restart edgefleet-agent
        echo "the agent is up to date"
    else
        echo "installed; now enrol this device and start the agent:"
        echo "  sudo -u edgefleet edgefleet-agent enroll --hub https://HOST:PORT --token CLAIM"
        echo "  sudo systemctl enable --now edgefleet-agent"
    fi
}

uninstall_agent() {
    control disable --now edgefleet-agent 2>/dev/null || true # it may never have been started
    rm -f "$link"
    [ "$unit" = no ] || rm -f "$unit_file"
    rm -rf "$program"
    control daemon-reload
    if [ "$purge" = yes ]; then
        rm -rf "$store"
        if [ -z "$root" ] && id edgefleet >/dev/null 2>&1; then
            userdel edgefleet
        fi
    elif [ -d "$store" ]; then
        echo "the store $store stays; --purge removes it"
    fi
}

"${action}_agent"
