#!/bin/sh
# Prints which requirements fit this machine: cuda, tpu or cpu.
# SYSTEM_ROOT (default: none) is put before the paths looked at, for tests.
root=${SYSTEM_ROOT:-}

has_tpu() {
    ls "$root"/dev/accel[0-9]* >/dev/null 2>&1 && return 0
    # Newer TPU VMs hand their chips over through VFIO; 0x1ae0 is Google's PCI vendor id.
    ls "$root"/dev/vfio/[0-9]* >/dev/null 2>&1 || return 1
    grep -qsx 0x1ae0 "$root"/sys/bus/pci/devices/*/vendor
}

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    echo cuda
elif has_tpu; then
    echo tpu
else
    echo cpu
fi
