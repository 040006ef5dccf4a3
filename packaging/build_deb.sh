#!/bin/sh
# Builds the Debian package of the agent: build_deb.sh [--wheels DIR] [--output DIR]
#
# The package holds the wheels of the agent and makes its virtual environment on the device, with
# the device's own Python. With a folder of all wheels that the board needs (made by `pip download`
# on such a board) it installs without a network; else the dependencies come from the package index.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$here")
wheels= output=$repository/build/deb
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels) wheels=$2; shift ;;
        --output) output=$2; shift ;;
        *) echo "usage: build_deb.sh [--wheels DIR] [--output DIR]" >&2; exit 2 ;;
    esac
    shift
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree share=$work/tree/usr/share/edgefleet
mkdir -p "$tree/DEBIAN" "$share/wheels" "$tree/lib/systemd/system" \
    "$tree/usr/share/doc/edgefleet-agent" "$output"

if [ -n "$wheels" ]; then
    cp "$wheels"/*.whl "$share/wheels/"
    source_option="--wheels /usr/share/edgefleet/wheels"
else
    # From a copy without what earlier builds left, which would end up in the wheel.
    for member in protocol agent; do
        mkdir -p "$work/$member"
        cp -R "$repository/$member/pyproject.toml" "$repository/$member/edgefleet_$member" \
            "$work/$member/"
        python3 -m pip wheel --quiet --no-deps --wheel-dir "$share/wheels" "$work/$member"
    done
    source_option=
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$repository/agent/pyproject.toml")
architecture=all
for wheel in "$share"/wheels/*.whl; do
    case "$wheel" in
        *-none-any.whl) ;;
        *) architecture=$(dpkg --print-architecture) ;;
    esac
done

cp "$here/install.sh" "$here/agent.toml" "$share/"
chmod 755 "$share/install.sh"
cp "$here/edgefleet-agent.service" "$tree/lib/systemd/system/"
cp "$repository/LICENSE" "$tree/usr/share/doc/edgefleet-agent/copyright"
cp "$repository/docs/agent.md" "$tree/usr/share/doc/edgefleet-agent/"

cat > "$tree/DEBIAN/control" <<TEXT
Package: edgefleet-agent
Version: $version
Architecture: $architecture
Maintainer: edgefleet
Section: net
Priority: optional
Depends: python3 (>= 3.11), python3-venv, passwd
Description: runs machine-learning models on this device and keeps them right
 The agent verifies, tries and serves the models that its hub assigns to it, reports
 sketches of the data it sees, and goes back by itself when a new version is bad.
TEXT
cat > "$tree/DEBIAN/postinst" <<TEXT
#!/bin/sh
set -e
if [ "\$1" = configure ]; then
    PIP_FIND_LINKS=/usr/share/edgefleet/wheels \\
        /usr/share/edgefleet/install.sh --no-unit $source_option
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
fi
TEXT
cat > "$tree/DEBIAN/prerm" <<'TEXT'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    /usr/share/edgefleet/install.sh --uninstall --no-unit
fi
TEXT
cat > "$tree/DEBIAN/postrm" <<'TEXT'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    rm -rf /var/lib/edgefleet
    if id edgefleet >/dev/null 2>&1; then
        userdel edgefleet
    fi
fi
TEXT
chmod 755 "$tree/DEBIAN/postinst" "$tree/DEBIAN/prerm" "$tree/DEBIAN/postrm"
find "$tree" -type d -exec chmod 755 {} +
find "$tree/usr" "$tree/lib" -type f ! -name install.sh -exec chmod 644 {} +

dpkg-deb --root-owner-group --build "$tree" "$output/edgefleet-agent_${version}_$architecture.deb"
