"""Read, validate, split and write rows of JSON: ours against plain `datasets`, to the same rows.

    python benchmarks/data_prepare.py --rows 1000000 --json FILE

Both read one .jsonl file of generated instruction rows, refuse rows without text, cut them by the hash of the
normalised prompt, and write train.jsonl and heldout.jsonl. The peer is load_dataset("json"), one map, one filter a
split and to_json, as its documentation shows them; its map does in plain functions what the format asks for. Ours also
looks for everything that data/ refuses. Runs alternate, each in a process of its own with an empty cache. The rows of
both outputs are compared by hash in their order (the two write JSON with other spaces), and the run fails when they
differ.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# The parent imports nothing heavy: on Linux a child's peak memory begins with that of the process that forked it.
ROOT = Path(__file__).resolve().parent.parent
PAIRS = 3
SIDES = ("ours", "peer")
SPLITS = ("train", "heldout")


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows per second and peak memory of data preparation.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write speed_ratio and memory_ratio here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_side(arguments.side, arguments.work)))
        return
    with tempfile.TemporaryDirectory(prefix="data-prepare-") as folder:
        result = compare(arguments.rows, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(rows: int, folder: Path) -> dict[str, Any]:
    """Run both sides in turn, print what they took, and return the ratios."""
    generate(rows, folder / "rows.jsonl")
    generate(max(1, rows // 10), folder / "tenth.jsonl")
    size = (folder / "rows.jsonl").stat().st_size
    print(f"{rows} rows, {size / 2**20:.0f} MiB; {platform.machine()}, {os.cpu_count()} cores", flush=True)
    pairs = []
    for number in range(PAIRS):
        pairs.append({side: start(side, folder / "rows.jsonl", folder) for side in SIDES})
        for side in SIDES:
            show(f"{number + 1} {side}", rows, pairs[-1][side])
    if len({pair[side]["hash"] for pair in pairs for side in pair}) != 1:
        sys.exit("the outputs differ")
    print("outputs are equal:", pairs[0]["ours"]["hash"][:16])
    small = {side: start(side, folder / "tenth.jsonl", folder) for side in SIDES}
    for side, measured in small.items():
        show(f"a tenth, {side}", max(1, rows // 10), measured)
    return summarise(rows, pairs, small)


def summarise(rows: int, pairs: list[dict[str, Any]], small: dict[str, Any]) -> dict[str, Any]:
    """Median ratios of the pairs with their ranges, and how memory grew from a tenth of the rows."""
    speeds = [pair["peer"]["seconds"] / pair["ours"]["seconds"] for pair in pairs]
    memories = [pair["ours"]["peak_rss"] / pair["peer"]["peak_rss"] for pair in pairs]
    growth = {side: statistics.median(p[side]["peak_rss"] for p in pairs) / small[side]["peak_rss"] for side in small}
    result = {
        "rows": rows,
        "speed_ratio": round(statistics.median(speeds), 3),
        "speed_ratio_range": [round(min(speeds), 3), round(max(speeds), 3)],
        "memory_ratio": round(statistics.median(memories), 3),
        "memory_ratio_range": [round(min(memories), 3), round(max(memories), 3)],
        "memory_growth_over_ten_times_the_rows": {side: round(ratio, 3) for side, ratio in growth.items()},
        "rows_per_second": {
            side: round(rows / statistics.median(pair[side]["seconds"] for pair in pairs)) for side in SIDES
        },
        "pairs": pairs,
    }
    print(
        f"speed, peer's time over ours: {result['speed_ratio']} {result['speed_ratio_range']} (over 1: ours is faster)"
    )
    print(
        f"memory, ours over peer's: {result['memory_ratio']} {result['memory_ratio_range']} (under 1: ours is smaller)"
    )
    print(f"peak memory at ten times the rows, times: {result['memory_growth_over_ten_times_the_rows']}")
    return result


def generate(rows: int, path: Path) -> None:
    """Instruction rows of 20 to 200 words, some with letters beyond ASCII; the same ones every time."""
    draw = random.Random(0)
    words = [
        "apple",
        "Berlin",
        "naïve",
        "the",
        "of",
        "sorted",
        "list",
        "Größe",
        "number",
        "answer",
        "東京",
        "and",
        "why",
    ]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            text = " ".join(draw.choices(words, k=draw.randint(10, 60)))
            answer = " ".join(draw.choices(words, k=draw.randint(10, 140)))
            # Every seventh prompt is an earlier one again, which must land in the same split.
            number_asked = number if number % 7 else draw.randint(0, number)
            row = {"instruction": f"{number_asked}: sort these words", "input": text, "output": answer}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def start(side: str, source: Path, folder: Path) -> dict[str, Any]:
    """Run one side in a fresh process."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        (Path(work) / "rows.jsonl").symlink_to(source)
        command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--work", work]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **quiet}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{side} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])


def run_side(side: str, work: Path) -> dict[str, Any]:
    """Seconds, CPU time, peak memory and the hash of what one side wrote."""
    load = os.getloadavg()[0]
    started, cpu = time.perf_counter(), time.process_time()
    {"ours": ours, "peer": peer}[side](work)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(split.encode())
        with (work / f"{split}.jsonl").open("rb") as stream:
            for line in stream:
                digest.update(json.dumps(json.loads(line), sort_keys=True).encode())
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_rss": peak, "load": load, "hash": digest.hexdigest()}


def ours(work: Path) -> None:
    """What `onebase data convert rows.jsonl --out FOLDER` does. Its imports count."""
    from data.records import Demonstration
    from data.select.dropped import DroppedRows
    from data.select.sources import Source, records_of
    from data.writing import write_splits

    write_splits(records_of(Source(source=str(work / "rows.jsonl")), Demonstration, DroppedRows()), work)


def peer(work: Path) -> None:
    """datasets as its documentation has it: load, map, filter, to_json. Its imports count."""
    import unicodedata

    from datasets import load_dataset

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        for name in ("instruction", "input", "output"):
            if not isinstance(row[name], str):
                raise ValueError(f"{name} is no text")
        prompt = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
        if not prompt.strip() or not row["output"].strip():
            raise ValueError("a text is empty")
        normalised = " ".join(unicodedata.normalize("NFKC", f"user: {prompt}").casefold().split())
        position = int.from_bytes(hashlib.sha256(normalised.encode()).digest()[:8], "big") / 2**64
        return {"prompt": prompt, "response": row["output"], "split": "train" if position < 0.9 else "heldout"}

    rows = load_dataset("json", data_files=str(work / "rows.jsonl"), split="train", cache_dir=str(work / "cache"))
    rows = rows.map(prepared, remove_columns=["instruction", "input", "output"])
    for split in SPLITS:
        chosen = rows.filter(lambda value, split=split: value == split, input_columns="split").remove_columns("split")
        chosen.to_json(work / f"{split}.jsonl", force_ascii=False)


def show(name: str, rows: int, measured: dict[str, Any]) -> None:
    print(
        f"{name:>14}: {measured['seconds']:7.2f} s ({rows / measured['seconds']:8.0f} rows/s), "
        f"CPU {measured['cpu_seconds']:7.2f} s, "
        f"peak {measured['peak_rss'] / 2**20:6.0f} MiB, load {measured['load']:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
