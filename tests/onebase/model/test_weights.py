"""Files of weights: whole, the ones that transformers loads, and what the model needs, or refused by name."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.errors import BaseError
from onebase.model import base as bases
from onebase.model import weights
from onebase.recipe.sections import BaseSection, ChatSection

Weights = dict[str, Tensor]
LAST = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def copy(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


def section(folder: Path, quantization: str = "fp32") -> BaseSection:
    return BaseSection.model_validate({"model": str(folder), "quantization": quantization})


def read(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def write(folder: Path, content: Weights, name: str = "model.safetensors") -> None:
    save_file(content, folder / name, metadata={"format": "pt"})


def in_shards(folder: Path) -> dict[str, str]:
    """The folder's weights in two files and an index; returns the index's map."""
    content = read(folder)
    names = sorted(content)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    places = {}
    for file, held in halves.items():
        write(folder, {name: content[name] for name in held}, file)
        places.update(dict.fromkeys(held, file))
    (folder / "model.safetensors").unlink()
    write_index(folder, places)
    return places


def write_index(folder: Path, places: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def load(folder: Path, quantization: str = "fp32") -> bases.Base:
    return bases.load(section(folder, quantization), ChatSection(), device=torch.device("cpu"))


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda content: {key: value for key, value in content.items() if key != name}


def renamed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda content: {prefix + key: value for key, value in content.items()}


def beside(**further: Tensor) -> Callable[[Weights], Weights]:
    return lambda content: {**content, **{name.replace("__", "."): value for name, value in further.items()}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(NORM), rf"missing: 1 \({NORM}\)"),
        (without(EMBEDDING), r"missing: \d \(.*embed_tokens"),
        (renamed("module."), r"all of them under the prefix 'module\.'"),
        (renamed("_orig_mod.base_model.model."), r"all of them under the prefix '_orig_mod\.base_model\.model\.'"),
        (beside(model__layers__2__input_layernorm__weight=torch.ones(64)), r"not of this model: 1 \(model\.layers\.2"),
        (beside(model__layers__0__mlp__up_proj__bias=torch.ones(128)), r"not of this model: 1 \(.*up_proj\.bias"),
        (beside(model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(4, 64)), r"q_proj\.lora_A"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_refused_by_name(
    copy: Path, quantization: str, change: Callable[[Weights], Weights], words: str
) -> None:
    write(copy, change(read(copy)))
    with pytest.raises(BaseError, match=words):
        load(copy, quantization)


@pytest.mark.parametrize("shape", [(64, 64), (128, 64), (32, 256)])
@pytest.mark.parametrize("name", [LAST, QUERY, EMBEDDING])
def test_a_weight_of_another_shape_is_refused_also_where_it_is_packed(
    copy: Path, quantization: str, name: str, shape: tuple[int, int]
) -> None:
    content = read(copy)
    if content[name].shape == shape:
        pytest.skip("its own shape")
    write(copy, {**content, name: torch.ones(shape)})
    with pytest.raises(BaseError, match=rf"of another shape: .*{name} is \[{shape[0]}, {shape[1]}\] and should be"):
        load(copy, quantization)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content,  # the head is tied to the embedding, and not in the file
        lambda content: {**content, "lm_head.weight": content[EMBEDDING].clone()},
        lambda content: {("lm_head.weight" if key == EMBEDDING else key): value for key, value in content.items()},
        beside(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8)),
        beside(h__0__attn__masked_bias=torch.tensor(-torch.inf), h__0__attn__causal_mask=torch.ones(4).byte()),
    ],
    ids=["tied", "tied, twice in the file", "tied, as the head alone", "rotary frequencies", "masks"],
)
def test_tied_weights_and_buffers_of_old_are_understood(
    copy: Path, tiny_base_folder: Path, change: Callable[[Weights], Weights]
) -> None:
    write(copy, change(read(copy)))
    tokens = torch.arange(12).unsqueeze(0)
    ours, plain = (load(folder).model(input_ids=tokens).logits for folder in (copy, tiny_base_folder))
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(copy: Path, scale: float) -> None:
    content = read(copy)
    write(copy, {**content, "lm_head.weight": content[EMBEDDING] * scale})
    with pytest.raises(BaseError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight.*two weights that"):
        load(copy)


def test_where_nothing_is_tied_the_head_must_be_there(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(BaseError, match=r"missing: 1 \(lm_head\.weight\)"):
        load(copy)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [NORM, QUERY])
def test_numbers_that_are_none_are_refused_by_name(copy: Path, quantization: str, name: str, number: float) -> None:
    content = read(copy)
    content[name].view(-1)[-1] = number
    write(copy, content)
    with pytest.raises(BaseError, match=rf"NaN or infinity in the weights: {name} in model\.safetensors"):
        load(copy, quantization)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_number_format_is_searched_to_its_end(tmp_path: Path, dtype: torch.dtype) -> None:
    sound = torch.linspace(-100, 100, 70_001).to(dtype)
    write(tmp_path, {"a": sound, "b": torch.zeros(0, dtype=dtype), "c": torch.ones(3, dtype=torch.long)})
    weights.require_finite([tmp_path / "model.safetensors"])
    for place in (0, 70_000):
        broken = sound.clone()
        broken[place] = torch.nan
        write(tmp_path, {"a": sound, "h.0.attn.bias": broken.clone(), "b": broken}, "broken.safetensors")
        with pytest.raises(BaseError, match=r"weights: b in .*broken\.safetensors\."):
            weights.require_finite([tmp_path / "broken.safetensors"])
        weights.require_finite([tmp_path / "broken.safetensors"], ignored=["^b$"])


def cut(size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:size])

    return change


def replaced(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def shard_missing(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_missing(folder: Path) -> None:
    in_shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def index_of_another_save(folder: Path) -> None:
    places = in_shards(folder)
    write_index(folder, {**places, "model.layers.9.mlp.up_proj.weight": places[LAST]})


def index_without_metadata(folder: Path) -> None:
    places = in_shards(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def weight_in_two_files(folder: Path) -> None:
    places = in_shards(folder)
    (other,) = set(places.values()) - {places[LAST]}
    write(folder, {**load_file(folder / other), LAST: torch.zeros(64, 128)}, other)


def index_leads_out(folder: Path) -> None:
    places = in_shards(folder)
    shutil.move(folder / places[LAST], folder.parent / "away.safetensors")
    write_index(folder, {key: name.replace(places[LAST], "../away.safetensors") for key, name in places.items()})


def under_another_name(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def link_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "1234")


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in the header": (cut(100), r"model\.safetensors is not a whole safetensors file .*100 bytes"),
    "cut by a byte": (cut(-1), r"model\.safetensors is not a whole safetensors file"),
    "empty": (cut(0), r"model\.safetensors is not a whole safetensors file .*0 bytes"),
    "a page": (replaced("model.safetensors", "<!DOCTYPE html><title>404</title>"), "is not a whole safetensors file"),
    "LFS": (replaced("model.safetensors", LFS), r"model\.safetensors is a pointer of Git LFS"),
    "git-annex": (replaced("model.safetensors", "/annex/objects/SHA256E-s1--00\n"), "is a pointer of .*git-annex"),
    "LFS, tokenizer": (replaced("tokenizer.json", LFS), r"tokenizer\.json is a pointer of Git LFS"),
    "LFS, config": (replaced("config.json", LFS), r"config\.json is a pointer of Git LFS"),
    "config cut": (replaced("config.json", '{"model_type": "lla'), r"config\.json is not valid JSON"),
    "config of another kind": (replaced("config.json", "[]"), r"config\.json holds list, not a JSON object"),
    "shard missing": (shard_missing, r"model-00002-of-00002\.safetensors is missing: .* has \d+ of \d+ weights in it"),
    "index missing": (index_missing, r"holds model-00001-of-00002\.safetensors, but no model\.safetensors\.index"),
    "another save": (index_of_another_save, r"has the weight model\.layers\.9.* which does not hold it"),
    "twice": (weight_in_two_files, rf"the weight {LAST} is in two files, model-0000"),
    "outside": (index_leads_out, r"names weights outside of its folder: '\.\./away\.safetensors'"),
    "consolidated": (under_another_name("consolidated.safetensors"), r"no \*\.safetensors weights.*consolidated"),
    "index without metadata": (index_without_metadata, r"holds no 'metadata', which transformers reads"),
    "config nested too deeply": (replaced("config.json", "[" * 100_000), r"config\.json is not valid JSON"),
    "a variant": (under_another_name("model.fp16.safetensors"), r"no \*\.safetensors weights.*model\.fp16"),
    "pickled": (under_another_name("pytorch_model.bin"), "Pickled weights are not read"),
    "distributed": (under_another_name("shard-00000-model-00001-of-00001.safetensors"), "distributed checkpoint"),
    "link": (link_to_nothing, "is a link to a file that is not there"),
    "adapter": (adapter_beside, r"holds an adapter beside the model \(adapter_config\.json\)"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_folder_that_is_not_whole_is_refused_everywhere_with_the_same_words(copy: Path, fault: str) -> None:
    change, words = BROKEN[fault]
    change(copy)
    told = []
    for ask in (
        lambda: bases.reach(section(copy)),
        lambda: bases.identify(section(copy), ChatSection()),
        lambda: load(copy),
    ):
        with pytest.raises(BaseError, match=words) as error:
            ask()
        told.append(str(error.value))
    assert len(set(told)) == 1


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"hidden_act": "no-such"}, r"cannot make the model of .*KeyError: 'no-such'"),
        ("config.json", {"pad_token_id": 9999}, r"cannot make the model of .*Padding_idx"),
        ("config.json", {"num_attention_heads": 3}, r"cannot read .*config\.json"),
        ("config.json", {"dtype": "float99"}, r"cannot read .*config\.json"),
        ("generation_config.json", {"cache_implementation": "foo"}, r"cannot make the model .*cache_implementation"),
        ("generation_config.json", {"eos_token_id": [2, 9999]}, r"eos_token_id 9999 of generation_config\.json"),
        ("tokenizer.json", {"added_tokens": 5}, r"holds no tokenizer that transformers can read \(TypeError"),
        ("tokenizer.json", {"model": {"type": "Foo"}}, r"holds no tokenizer that transformers can read"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, r"holds no tokenizer that transformers can read"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_file(
    copy: Path, file: str, values: dict[str, Any], words: str
) -> None:
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**content, **values}))
    with pytest.raises(BaseError, match=words):
        load(copy)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_generation_settings_that_are_no_object_are_refused(copy: Path, text: str) -> None:
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(BaseError, match=r"generation_config\.json (is not valid JSON|holds list)"):
        bases.load_tokenizer(section(copy), ChatSection())


def test_the_identity_is_that_of_the_files_that_are_loaded(copy: Path) -> None:
    def weights_hash() -> str:
        return bases.identify(section(copy), ChatSection())[0].weights_sha256

    def by_definition(*names: str) -> str:
        lines = [f"{name}:{hashlib.sha256((copy / name).read_bytes()).hexdigest()}\n" for name in names]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    alone = weights_hash()
    assert alone == by_definition("model.safetensors")
    # Beside it, and not loaded: Mistral's own format, shards of another save with their index.
    write(copy, {"a": torch.ones(2)}, "consolidated.safetensors")
    write(copy, {"a": torch.ones(2)}, "model-00001-of-00001.safetensors")
    write_index(copy, {"a": "model-00001-of-00001.safetensors"})
    assert weights_hash() == alone
    content = read(copy)
    write(copy, {**content, LAST: content[LAST] + 1})
    assert weights_hash() not in (alone, by_definition("consolidated.safetensors", "model.safetensors"))


def test_a_base_in_several_files_is_loaded_whole(copy: Path, tiny_base_folder: Path) -> None:
    in_shards(copy)
    write(copy, {"a": torch.ones(2)}, "consolidated.safetensors")
    assert [file.name for file in weights.files_of(copy)] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    ours, plain = (load(folder).model.state_dict() for folder in (copy, tiny_base_folder))
    assert all(torch.equal(plain[name], tensor) for name, tensor in ours.items())


def test_the_files_that_a_config_names_are_those(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "theirs.safetensors")
    write(copy, {"a": torch.ones(2)})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_weights": "theirs.safetensors"}))
    assert [file.name for file in weights.files_of(copy)] == ["theirs.safetensors"]
    load(copy)


@pytest.mark.parametrize("revision", ["main", "0123abc"])
def test_a_revision_that_nothing_heeds_is_refused(copy: Path, revision: str) -> None:
    wanted = section(copy).model_copy(update={"revision": revision})
    for ask in (bases.reach, lambda section_: bases.identify(section_, ChatSection())):
        with pytest.raises(BaseError, match=rf"base\.revision: '{revision}' has no effect for .*base"):
            ask(wanted)
    snapshot = Path(shutil.copytree(copy, copy.parent / "snapshots" / revision))
    bases.reach(section(snapshot).model_copy(update={"revision": revision}))
