#!/bin/sh
# Stands for `understudy` when a test opens a store through the probe: $4 is the data folder. The
# test's own binary does the probing, in this process, so that its limits hold.
UNDERSTUDY_TEST_PROBES="$4" exec "$(readlink "/proc/$PPID/exe")" \
    --exact damage::prober --ignored --nocapture
