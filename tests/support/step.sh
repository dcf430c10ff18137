#!/usr/bin/env bash
# Runs one step of a make target: prints its name, runs the command, and prints how long it took.
set -uo pipefail

if (($# < 2)); then
    echo 'usage: step.sh NAME COMMAND [ARGUMENT]...' >&2
    exit 64
fi
name=$1
shift
printf '\n== %s\n' "$name"
begin=$SECONDS
status=0
"$@" || status=$?
took=$((SECONDS - begin))
if ((took >= 60)); then took="$((took / 60)) min $((took % 60)) s"; else took="$took s"; fi
if ((status == 0)); then printf '== %s: done in %s\n' "$name" "$took"; else printf '== %s: FAILED after %s\n' "$name" "$took" >&2; fi
exit "$status"
