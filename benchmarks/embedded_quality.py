"""How good are the assets of the embedded preset? Ten prompts, the whole run each, judged from eight sides.

    python benchmarks/embedded_quality.py --output outputs/benchmarks/quality

Every prompt goes through launch.py as a user would run it. The judge (load/embedded-judge) then answers, for eight views around the object,
which family and which color it sees; the other attributes are reported too. One JSON file with all answers and one contact sheet with a row
a prompt are written. Finished runs are kept, so the command can be stopped and started again. Arguments behind `--` go to launch.py.
On a GPU --workers trains several prompts at once; their times are then not those of a run alone.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

from dreammapping.comparison.prompts import prompt_of  # noqa: E402
from dreammapping.evaluation.judge import Judge  # noqa: E402

VIEWS = 8
PROMPTS: tuple[tuple[str, str, str], ...] = (
    ("mug", "red", "striped"),
    ("chair", "blue", "plain"),
    ("mushroom", "orange", "dotted"),
    ("robot", "gray", "metallic"),
    ("duck", "yellow", "plain"),
    ("house", "purple", "plain"),
    ("teddy bear", "brown", "plain"),
    ("pumpkin", "green", "striped"),
    ("car", "blue", "checkered"),
    ("teapot", "red", "metallic"),
)
"""Family, color and pattern. The mug is the default prompt; none of the others was used to choose a
setting. The last three combinations are ones the teacher never saw."""


def finished_run(folder: Path) -> Path | None:
    """The newest run below `folder` that wrote its model card after training."""
    cards = sorted(folder.glob("*/*/save/model_card.json"))
    done = [card for card in cards if "trained" in card.read_text(encoding="utf-8")]
    return done[-1].parents[1] if done else None


def run_prompt(prompt: str, folder: Path, config: str, extra: list[str]) -> tuple[Path, float]:
    """The run folder of the prompt and the wall-clock seconds that launch.py took (0 if it was there already)."""
    if (run := finished_run(folder)) is not None:
        return run, 0.0
    command = [
        sys.executable, "launch.py", "--config", config, "--train", f"system.prompt_processor.prompt={prompt}", f"exp_root_dir={folder}",
        *extra,
    ]
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "launch.log", "w", encoding="utf-8") as log:
        code = subprocess.call(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    run = finished_run(folder)
    if code != 0 or run is None:
        raise SystemExit(f"{prompt!r} failed with exit code {code}; see {folder / 'launch.log'}")
    return run, time.monotonic() - started


def turntable_views(run: Path) -> torch.Tensor:
    """VIEWS pictures [V, H, W, 3] in [0, 1], evenly spaced over the turntable (its last frame repeats the first)."""
    frames = sorted(run.glob("save/it*-test/*.png"), key=lambda f: int(f.stem))
    picked = [frames[round(i * (len(frames) - 1) / VIEWS)] for i in range(VIEWS)]
    return torch.stack([torch.from_numpy(np.asarray(Image.open(f).convert("RGB"))).float() / 255 for f in picked])


def judge_views(judge: Judge, views: torch.Tensor, family: str, color: str, pattern: str) -> dict:
    truth = {"family": judge.families.index(family), "color": judge.colors.index(color), "pattern": judge.patterns.index(pattern)}
    answers = judge.ask(views, truth["family"])
    names = {"family": judge.families, "color": judge.colors, "pattern": judge.patterns}
    return {
        **{attribute: answers.share_right(attribute, index) for attribute, index in truth.items()},
        "clip_score": judge.clip_score(views, prompt_of(family, color, pattern)).mean().item(),
        "seen": {attribute: [names[attribute][i] for i in answers.choices[attribute].tolist()] for attribute in truth},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/quality"))
    parser.add_argument("--config", default="custom/dreammapping/configs/vdm-gs.yaml")
    parser.add_argument("--judge", type=Path, default=ROOT / "load/embedded-judge")
    parser.add_argument("--only", type=int, help="the first so many prompts")
    parser.add_argument("--workers", type=int, default=1, help="runs at once")
    parser.add_argument("extra", nargs="*", help="further arguments of launch.py")
    args = parser.parse_args()
    judge, results, rows = Judge(args.judge), [], []
    with ThreadPoolExecutor(args.workers) as pool:
        folders = [(args.output / prompt_of(*asked).replace(" ", "_")).resolve() for asked in PROMPTS[: args.only]]
        runs = [pool.submit(run_prompt, prompt_of(*asked), folder, args.config, args.extra) for asked, folder in zip(PROMPTS, folders)]
        for (family, color, pattern), finished in zip(PROMPTS, runs):
            prompt, (run, seconds) = prompt_of(family, color, pattern), finished.result()
            views = turntable_views(run)
            rows.append(views)
            card = json.loads((run / "save" / "model_card.json").read_text(encoding="utf-8"))
            results.append({"prompt": prompt, **judge_views(judge, views, family, color, pattern), "seconds": seconds, "card": card})
            print(f"{prompt:36s}" + "".join(f"  {k} {results[-1][k]:5.1%}" for k in ("family", "color", "pattern")), flush=True)
    mean = {k: float(np.mean([r[k] for r in results])) for k in ("family", "color", "pattern", "clip_score")}
    print(f"{'mean':36s}" + "".join(f"  {k} {mean[k]:5.1%}" for k in ("family", "color", "pattern")))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "quality.json").write_text(json.dumps({"mean": mean, "prompts": results}, indent=1))
    small = [torch.nn.functional.interpolate(r.permute(0, 3, 1, 2), (128, 128), mode="area").permute(2, 0, 3, 1).flatten(1, 2) for r in rows]
    sheet = (torch.cat(small).mul(255).round().byte()).numpy()
    Image.fromarray(sheet).save(args.output / "contact_sheet.png", optimize=True)


if __name__ == "__main__":
    main()
