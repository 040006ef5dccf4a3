#!/bin/sh
# Install the Debian packages whose programs the tests drive: a second broker, a browser, a software
# HSM, a software TPM, a clock to be set, emulated ARM cores, an SSH server. Without root or apt the tests that need them say so and skip.
set -eu
missing=""
for pair in mosquitto:mosquitto chromium:chromium softhsm2:softhsm2-util swtpm:swtpm faketime:faketime \
    qemu-user-static:qemu-aarch64-static debootstrap:/usr/sbin/debootstrap openssh-server:/usr/sbin/sshd \
    tpm2-tools:tpm2_createprimary tpm2-openssl:/usr/lib/x86_64-linux-gnu/ossl-modules/tpm2.so; do
    case "${pair#*:}" in
    /*) [ -e "${pair#*:}" ] || missing="$missing ${pair%%:*}" ;;
    *) command -v "${pair#*:}" >/dev/null 2>&1 || missing="$missing ${pair%%:*}" ;;
    esac
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, tests that need them will skip:$missing" >&2
    exit 0
fi
apt-get update -qq >&2
# shellcheck disable=SC2086  # a list of names
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
