"""What a base's folder says in JSON: code of the publisher and stored quantisation are refused before anything is read,
and a format that the recipe names is the one that is loaded."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from onebase.cli.command import guarded, run_stage
from onebase.errors import BaseError, DataError
from onebase.model import base as bases
from onebase.model import loaded, model_folder
from onebase.recipe.sections import BaseSection, ChatSection
from sft.__main__ import load as load_sft

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


def section(folder: Path, quantization: str = "fp32") -> BaseSection:
    return BaseSection.model_validate({"model": str(folder), "quantization": quantization})


def change(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **values}))


def refusals(folder: Path) -> set[str]:
    """What each way to the base says of it."""
    told = set()
    for ask in (
        lambda: bases.reach(section(folder)),
        lambda: bases.load_tokenizer(section(folder), ChatSection()),
        lambda: bases.identify(section(folder), ChatSection()),
        lambda: bases.load(section(folder), ChatSection(), device=CPU),
    ):
        with pytest.raises(BaseError) as error:
            ask()
        told.add(str(error.value))
    return told


CODE = "import pathlib\npathlib.Path(__file__).with_name('RAN').write_text('')\n"


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        (
            "config.json",
            {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}},
            "needs code of its publisher",
        ),
        (
            "config.json",
            {"model_type": "t5", "auto_map": {"AutoModelForCausalLM": "org/name--code.Model"}},
            r"'t5' needs code of its publisher \(auto_map: org/name--code\.Model\)",
        ),
        ("config.json", {"model_type": "mine"}, "knows no causal language model of that type"),
        ("config.json", {"model_type": None}, "model_type is None"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "TheirTokenizer", "auto_map": {"AutoTokenizer": ["code.TheirTokenizer", None]}},
            r"'TheirTokenizer' needs code of its publisher \(auto_map: code\.TheirTokenizer\)",
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": None, "auto_map": ["code.Slow", "code.Fast"]},
            "needs code of its publisher",
        ),
    ],
)
def test_code_of_a_publisher_is_refused_and_not_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch, file: str, values: dict[str, Any], words: str
) -> None:
    def question(*_: object) -> str:
        raise AssertionError("somebody is asked")

    monkeypatch.setattr("builtins.input", question)
    (copy / "code.py").write_text(CODE)
    change(copy, file, **values)
    (told,) = refusals(copy)
    assert re.search(words, told)
    assert not (copy / "RAN").exists()


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_a_type_that_transformers_has_is_used_with_its_own_code(
    copy: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    """Publishers leave their code beside a model that transformers took up later: as Phi-3 and StarCoder2 do."""
    (copy / "code.py").write_text(CODE)
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text(CODE)
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", "code.T"]}
    change(copy, part, auto_map=classes)
    base = bases.load(section(copy), ChatSection(), device=CPU)
    assert type(base.model).__module__.startswith("transformers.models.llama")
    assert ("ships code of its publisher; it is not run" in capsys.readouterr().err) == (part == "config.json")
    assert not [*copy.rglob("RAN")]
    assert base.tokenizer_identity == bases.identify(section(tiny_base_folder), ChatSection())[1]


def test_what_a_library_asks_finds_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command runs in `guarded`: an answer that lies ready on standard input stays unread."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    before = sys.stdin

    def ask() -> None:
        assert not sys.stdin.isatty()
        input("Do you wish to run the custom code? [y/N] ")

    assert guarded(ask) == 1
    assert sys.stdin is before


def test_standard_input_is_never_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer to everything lies ready, and all of it is still there at the end."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\nyes\n1\n"))
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    (copy / "code.py").write_text(CODE)
    change(copy, "config.json", model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    out = copy.parent / "run"
    overrides = [f"base.model={copy}", f"out={out}", "track.wandb=off"]
    assert run_stage("sft", load_sft, Path("recipes/smoke/sft.yaml"), overrides, False, False) == 2
    assert sys.stdin.read() == "y\nyes\n1\n"
    told = capsys.readouterr().err
    assert "needs code of its publisher" in told and "Traceback" not in told
    assert not (copy / "RAN").exists() and not out.exists()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, r"4-bit \(NF4\)"),
        ({"load_in_4bit": True}, r"bitsandbytes 4-bit \(FP4\)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4}, "as GPTQ"),
        ({"quant_method": "awq", "bits": 4}, "as AWQ"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "as FP8"),
        ({"quant_method": "mxfp4"}, "as MXFP4"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "as compressed-tensors"),
        ({"quant_method": "torchao"}, "as torchao"),
        ({}, "a kind that is not named"),
    ],
)
def test_a_base_that_is_stored_quantised_is_refused_with_its_kind(
    copy: Path, settings: dict[str, Any], kind: str
) -> None:
    change(copy, "config.json", quantization_config=settings)
    (told,) = refusals(copy)
    assert re.search(rf"quantization_config: the weights are stored quantised, .*{kind}", told)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "as GPTQ"),
        ("config.json", {"compression_config": {"quant_method": "compressed-tensors"}}, "as compressed-tensors"),
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}}, r"hf_quant_config\.json: .* as ModelOpt"),
        ("quantize_config.json", {"bits": 4}, r"quantize_config\.json: .* as GPTQ"),
    ],
)
def test_other_places_that_say_quantised_are_read(copy: Path, file: str, values: dict[str, Any], words: str) -> None:
    change(copy, file, **values)
    (told,) = refusals(copy)
    assert re.search(words, told)


@pytest.mark.parametrize("files", [[], ["model.gguf"]])
def test_what_the_hub_gave_without_a_config_is_refused(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_text("GGUF")
    with pytest.raises(BaseError, match=r"holds no config\.json"):
        model_folder.require_usable(tmp_path)


def test_null_says_nothing(copy: Path) -> None:
    change(copy, "config.json", quantization_config=None)
    bases.identify(section(copy), ChatSection())


@pytest.mark.parametrize(
    ("name", "tensor", "format"),
    [
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(128, 64, dtype=torch.int8), "I8"),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(128, 64).to(torch.float8_e4m3fn), "F8_E4M3"),
        ("model.layers.0.mlp.up_proj.qweight", torch.zeros(8, 128, dtype=torch.int32), "I32"),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", torch.zeros(4, 8, dtype=torch.uint8), "U8"),
        ("model.layers.0.mlp.up_proj.weight.absmax", torch.zeros(8, dtype=torch.uint8), "U8"),
    ],
)
def test_quantised_tensors_are_seen_where_no_config_says_so(
    copy: Path, name: str, tensor: torch.Tensor, format: str
) -> None:
    content = load_file(copy / "model.safetensors")
    save_file({**content, name: tensor}, copy / "model.safetensors", metadata={"format": "pt"})
    for ask in (bases.reach, lambda section_: bases.identify(section_, ChatSection())):
        with pytest.raises(BaseError, match=rf"model\.safetensors is stored quantised: {name} is of {format}"):
            ask(section(copy))


def test_masks_and_reach_old_checkpoints_are_no_quantised_weights(copy: Path) -> None:
    content = load_file(copy / "model.safetensors")
    masks = {"h.0.attn.bias": torch.ones(4, 4, dtype=torch.uint8), "position_ids": torch.arange(4)}
    save_file({**content, **masks}, copy / "model.safetensors", metadata={"format": "pt"})
    bases.identify(section(copy), ChatSection())


SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
QWEN: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16}
EXPERTS: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **QWEN),
    "olmoe": OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2),
}
DENSE: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=64),
}


@pytest.fixture
def build(copy: Path) -> Callable[[PreTrainedConfig], Path]:
    """A base of another architecture, with the tokenizer of the tiny one."""

    def make(config: PreTrainedConfig) -> Path:
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model = model_class(config)
        model.save_pretrained(copy)
        (copy / "generation_config.json").unlink()  # with the stop tokens of another tokenizer
        return copy

    return make


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_pass_four_bits_by_are_refused(build: Callable[[PreTrainedConfig], Path], name: str) -> None:
    """By definition: three matrices of 64 x 64 for each of four experts, and a router, against attention's 12,288."""
    folder = build(EXPERTS[name])
    left = 4 * 3 * 64 * 64 + 4 * 64
    share = left / (left + 64 * 64 * 2 + 32 * 64 * 2)
    with pytest.raises(BaseError, match=rf"nf4 leaves {share:.0%} of the weights .*6 \(model\.layers\.0\.mlp") as error:
        bases.load(section(folder, "nf4"), ChatSection(), device=CPU)
    assert "experts.gate_up_proj" in str(error.value) and "base.quantization=bf16" in str(error.value)
    bases.load(section(folder, "fp32"), ChatSection(), device=CPU)


@pytest.mark.parametrize("name", DENSE)
def test_where_every_layer_is_packed_four_bits_are_accepted(
    build: Callable[[PreTrainedConfig], Path], name: str
) -> None:
    bases.load(section(build(DENSE[name]), "nf4"), ChatSection(), device=CPU)


@pytest.mark.parametrize(("rows", "accepted"), [(4, True), (400, False)])
def test_a_hundredth_may_stay_as_it_is(copy: Path, rows: int, accepted: bool) -> None:
    """A router beside packed layers (which hold 73,728 weights here): few rows are within the bound, 400 are not."""
    base = bases.load(section(copy, "nf4"), ChatSection(), device=CPU)
    base.model.register_parameter("router", nn.Parameter(torch.zeros(rows, 64), requires_grad=False))
    if accepted:
        loaded.require_quantization(base.model, "nf4")
    else:
        with pytest.raises(BaseError, match=r"nf4 leaves 26% of the weights .* 1 \(\.?router\)"):
            loaded.require_quantization(base.model, "nf4")


@pytest.mark.parametrize(
    ("recorded", "held"), [("bf16", torch.float32), ("fp32", torch.bfloat16), ("fp32", torch.half)]
)
def test_a_number_format_that_was_not_loaded_is_refused(copy: Path, recorded: str, held: torch.dtype) -> None:
    model: Any = bases.load(section(copy), ChatSection(), device=CPU).model
    loaded.require_quantization(model, "fp32")
    with pytest.raises(BaseError, match=rf"{recorded} is asked for, and 100% of the weights"):
        loaded.require_quantization(model.to(held), recorded)


def test_an_expert_that_the_files_lack_is_refused(build: Callable[[PreTrainedConfig], Path]) -> None:
    """Files hold experts one by one, and transformers fuses them as it loads."""
    folder = build(EXPERTS["qwen3_moe"])
    content = load_file(folder / "model.safetensors")
    (name,) = [name for name in content if name.endswith("layers.1.mlp.experts.2.down_proj.weight")]
    del content[name]
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError, match=r"model\.layers\.1\.mlp\.experts\.down_proj"):
        bases.load(section(folder), ChatSection(), device=CPU)


@pytest.mark.parametrize("rows", [399, 260])
def test_tokens_without_a_row_are_refused_at_the_start(copy: Path, rows: int) -> None:
    change(copy, "config.json", vocab_size=rows)
    for ask in (bases.load_tokenizer, bases.identify):
        with pytest.raises(BaseError, match=rf"{400 - rows} tokens have no row in the embedding of {rows} rows"):
            ask(section(copy), ChatSection())


def add(folder: Path, name: str, **facts: bool) -> None:
    file = json.loads((folder / "tokenizer.json").read_text())
    entry = {"id": 400, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    file["added_tokens"].append({**entry, "special": True, **facts})
    (folder / "tokenizer.json").write_text(json.dumps(file))


@pytest.mark.parametrize(("token", "role"), [("[PAD]", "pad_token"), ("<end>", "eos_token"), ("<start>", "bos_token")])
def test_a_special_token_without_a_row_is_refused(copy: Path, token: str, role: str) -> None:
    """As where a pad token was added to Llama's tokenizer, and the model not resized."""
    add(copy, token)
    change(copy, "tokenizer_config.json", **{role: token})
    with pytest.raises(BaseError, match=r"1 tokens have no row in the embedding of 400 rows") as error:
        bases.load_tokenizer(section(copy), ChatSection())
    assert ("its pad token among them" in str(error.value)) == (role == "pad_token")


def test_a_word_without_a_row_is_refused(copy: Path) -> None:
    add(copy, "<think>", special=False)
    with pytest.raises(BaseError, match="'<think>' is 400"):
        bases.load_tokenizer(section(copy), ChatSection())


def test_a_token_for_images_without_a_row_is_refused_where_a_text_spells_it_out(copy: Path) -> None:
    """Gemma 3's text models have one such token; without it in a text they are as sound as any other."""
    add(copy, "<image_soft_token>")
    base = bases.load(section(copy), ChatSection(), device=CPU)
    base.model(input_ids=torch.tensor([[5, 399]]))
    with pytest.raises(DataError, match=r"spells out '<image_soft_token>', a special token .* \(400 of 400\)"):
        base.model(input_ids=torch.tensor([base.tokenizer.encode("a<image_soft_token>b", add_special_tokens=False)]))
