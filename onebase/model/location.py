"""Where a base lies on the disk: in the cache, in a folder of the user, or in a snapshot of a hub model."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from onebase.errors import BaseError
from onebase.model import model_folder, wheels


def resolve(model: str, revision: str | None) -> Path:
    """The local folder of a base: `pypi:NAME` from the cache, a folder as it is, anything else as a hub id.

    BaseError where the folder says that it is not one plain model of transformers' own kinds.
    """
    folder = _locate(model, revision)
    model_folder.require_usable(folder)
    return folder


def _locate(model: str, revision: str | None) -> Path:
    folder = Path(model).expanduser()
    is_local = model.startswith(wheels.PREFIX) or folder.is_dir()
    if is_local and revision is not None and revision != hub_revision(folder):
        raise BaseError(
            f"base.revision: '{revision}' has no effect for {model}, which is taken as it is: it would be recorded, "
            "and nothing would have heeded it. Leave it out, or pass a hub id."
        )
    if model.startswith(wheels.PREFIX):
        return wheels.fetch(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseError(
                f"base.model: the folder {model} holds no config.json. Pass the folder of a saved transformers model."
            )
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise BaseError(f"base.model: there is no folder {model}. Check the path, or pass a hub id such as 'org/name'.")
    return _download_from_hub(model, revision)


def _download_from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Weights as safetensors only: the other formats are pickles, which run code on loading.
    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BaseError(
            f"base.model: '{model}' is not a folder here and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Check the "
            "name, log in with `hf auth login` if it is gated, or pass a folder."
        ) from error


def hub_revision(folder: Path) -> str | None:
    """The commit of a hub snapshot, which is the name of its folder (`.../snapshots/<commit>`)."""
    return folder.name if folder.parent.name == "snapshots" else None


def read_config(folder: Path) -> PretrainedConfig:
    """transformers' config of a base; BaseError where it cannot be read."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a wrong value in it may raise anything
        raise BaseError(
            f"base.model: transformers cannot read {folder / 'config.json'} ({type(error).__name__}: "
            f"{' '.join(str(error).split()) or 'no reason given'}). Download the folder again."
        ) from error
