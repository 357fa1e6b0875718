#!/bin/sh
# All stages in order, as far as LIMIT seconds reach. Call it again until it prints the report: finished stages are skipped, started ones go on.
#
#   LIMIT=570 sh tabletop/train_all.sh
#
# Where a second GPU is, it draws most of the pictures and trains the judge while the first trains the autoencoder and the U-Net. With one, the
# judge trains beside the U-Net on it. START=load keeps the autoencoder of the teacher in that folder and
# goes on from its U-Net and from the judge beside it.
set -eu
LIMIT=${LIMIT:-3600}
D=${D:-build/tabletop}
LOAD=${LOAD:-load}
PYTHON=${PYTHON:-python3}
PICTURES=${PICTURES:-300000}
START=${START:-}
AT_FIRST=60000 # pictures that are enough for the autoencoder, which need not wait for the rest
REST=$PICTURES
if [ -n "$START" ]; then AT_FIRST=$PICTURES REST=0; fi
STARTED=$(date +%s)
GPUS=$($PYTHON -c "import torch; print(torch.cuda.device_count())")
if [ "$GPUS" -gt 1 ]; then FIRST=0 SECOND=1; else FIRST=0 SECOND=0; fi

# Minutes that are left of LIMIT after keeping $1 seconds back.
left() { echo "$STARTED $LIMIT $1 $(date +%s)" | awk '{m = ($1 + $2 - $3 - $4) / 60; print (m > 0 ? m : 0)}'; }

draw() { CUDA_VISIBLE_DEVICES=$1 $PYTHON -m tabletop.make_data --output "$D" --heldout "$2" --judge "$3" --train "$4" | tail -n 1; }

judge() {
    draw $SECOND 0 "$PICTURES" "$REST"
    touch "$D/drawn"
    while [ ! -d "$D/heldout" ]; do sleep 1; done
    [ -f "$D/judge-run/judge/model.safetensors" ] || CUDA_VISIBLE_DEVICES=$SECOND $PYTHON -m tabletop.train_judge --data "$D/judge" --heldout "$D/heldout" \
        ${START:+--start-from "$START/embedded-judge"} --output "$D/judge-run" --total-minutes "${JUDGE_MINUTES:-9}" --minutes "$(left 30)"
}

teacher() {
    if [ -n "$START" ] && [ ! -d "$D/vae/vae" ]; then mkdir -p "$D/vae" && cp -r "$START/embedded-teacher/vae" "$D/vae/vae"; fi
    [ -d "$D/vae/vae" ] || CUDA_VISIBLE_DEVICES=$FIRST $PYTHON -m tabletop.train_vae --data "$D/train" --heldout "$D/heldout" \
        --output "$D/vae" --total-minutes "${VAE_MINUTES:-4}" --minutes "$(left 20)"
    [ -d "$D/vae/vae" ] || return 0
    while [ ! -f "$D/drawn" ] && kill -0 $JUDGE; do sleep 1; done
    CUDA_VISIBLE_DEVICES=$FIRST $PYTHON -m tabletop.train_text_to_image --data "$D/train" --vae "$D/vae/vae" --output "$D/unet" \
        ${START:+--start-from "$START/embedded-teacher"} --total-minutes "${UNET_MINUTES:-16}" --minutes "$(left 60)"
}

rm -f "$D/drawn"
judge &
JUDGE=$!
draw $FIRST 5000 0 "$AT_FIRST"
teacher
wait $JUDGE
[ -f "$D/judge-run/judge/model.safetensors" ] && [ -d "$D/vae/vae" ] || exit 0
$PYTHON -m tabletop.export_teacher --vae "$D/vae/vae" --unet "$D/unet" --judge "$D/judge-run/judge" --output "$LOAD"
$PYTHON -m tabletop.evaluate_teacher --load "$LOAD" --heldout "$D/heldout" --output "$D/report"
