#!/bin/sh
# All stages in order, as far as LIMIT seconds reach. Call it again until it prints the report: finished stages are skipped, started ones go on.
#
#   LIMIT=570 sh tabletop/train_all.sh
#
# On one H200 two calls of ten minutes are enough. The judge trains beside the U-Net on the same GPU.
set -eu
LIMIT=${LIMIT:-3600}
D=${D:-build/tabletop}
LOAD=${LOAD:-load}
PYTHON=${PYTHON:-python3}
STARTED=$(date +%s)

# Minutes that are left of LIMIT after keeping $1 seconds back.
left() { echo "$STARTED $LIMIT $1 $(date +%s)" | awk '{m = ($1 + $2 - $3 - $4) / 60; print (m > 0 ? m : 0)}'; }

$PYTHON -m tabletop.make_data --output "$D" | tail -n 1
[ -d "$D/vae/vae" ] ||
    $PYTHON -m tabletop.train_vae --data "$D/train" --heldout "$D/heldout" --output "$D/vae" --total-minutes "${VAE_MINUTES:-3.5}" --minutes "$(left 20)"
[ -d "$D/vae/vae" ] || exit 0
if [ ! -d "$D/judge-run/judge" ]; then
    $PYTHON -m tabletop.train_judge --data "$D/judge" --heldout "$D/heldout" --output "$D/judge-run" \
        --total-minutes "${JUDGE_MINUTES:-8}" --minutes "$(left 60)" &
fi
$PYTHON -m tabletop.train_text_to_image --data "$D/train" --vae "$D/vae/vae" --output "$D/unet" \
    --total-minutes "${UNET_MINUTES:-11}" --minutes "$(left 70)"
wait
[ -d "$D/judge-run/judge" ] || exit 0
$PYTHON -m tabletop.export_teacher --vae "$D/vae/vae" --unet "$D/unet" --judge "$D/judge-run/judge" --output "$LOAD"
$PYTHON -m tabletop.evaluate_teacher --load "$LOAD" --heldout "$D/heldout" --output "$D/report"
