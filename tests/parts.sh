#!/usr/bin/env bash
# Run make targets one after the other and print how many minutes each took; all run, the first failure decides.
set -u
failed=""
report=""
for part in "$@"; do
    started=$SECONDS
    if make --no-print-directory "$part"; then result=passed; else result=FAILED failed="$failed $part"; fi
    report+=$(printf '%-18s %-7s %5.1f min' "$part" "$result" "$(awk "BEGIN{print ($SECONDS - $started) / 60}")")$'\n'
done
printf '\n%s' "$report"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
