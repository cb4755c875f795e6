"""Adapters as a stranger may make them: only plain LoRA is read, and a file that lies is refused by its name."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onebase.errors import RecordError
from onebase.model.adapter_config import CONFIG, WEIGHTS, read_config
from onebase.model.roles import HEAD, Roles
from onebase.model.tensor_file import read_shapes, read_tensors
from onebase.recipe.sections import AdapterSection

MakeRoles = Callable[..., Roles]


def make_adapter(folder: Path, **fields: Any) -> Path:
    """What PEFT writes for rank 2 on two modules, with other fields where they are given."""
    folder.mkdir(exist_ok=True)
    base = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    plain = {"bias": "none", "init_lora_weights": True, "megatron_core": "megatron.core", "lora_dropout": 0.1}
    (folder / CONFIG).write_text(json.dumps({**base, **plain, **fields}))
    names = [f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_" for layer in range(2)]
    tensors = {f"{name}A.weight": torch.ones(2, 8) for name in names}
    save_file({**tensors, **{f"{name}B.weight": torch.ones(8, 2) for name in names}}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        {"megatron_core": "stolen", "megatron_config": {"a": 1}},
        {"megatron_core": "stolen"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": 1},
        {"layer_replication": [[0, 1], [0, 2]]},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"layers_pattern": "(a+)+$", "layers_to_transform": [0]},
        {"trainable_token_indices": [1]},
        {"auto_mapping": {"parent_library": "os"}},
        {"a_key_of_another_peft": "yes"},
    ],
)
def test_a_key_that_does_more_than_plain_lora_is_refused_by_name(tmp_path: Path, fields: dict[str, Any]) -> None:
    (tmp_path / "stolen.py").write_text("raise SystemExit('executed')")
    sys.path.insert(0, str(tmp_path))
    try:
        folder = make_adapter(tmp_path / "adapter", **fields)
        with pytest.raises(
            RecordError, match=rf"^{folder / CONFIG}: ({'|'.join(fields)}): found .*only plain LoRA is read"
        ):
            read_config(folder)
    finally:
        sys.path.remove(str(tmp_path))
    assert "stolen" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", 2.0),
        ("r", 10**9),
        ("r", True),
        ("lora_alpha", "4"),
        ("lora_alpha", -4),
        ("lora_alpha", True),
        ("use_rslora", 1),
        ("task_type", "SEQ_CLS"),
        ("target_modules", ["(.*a)*"]),
        ("target_modules", [["q_proj"]]),
        ("target_modules", []),
        ("target_modules", None),
        ("target_parameters", ["(a+)+$"]),
        ("rank_pattern", {"q_proj": 64}),
        ("rank_pattern", {"(a+)+$": 2}),
        ("rank_pattern", {"q_proj": True}),
        ("alpha_pattern", {"(a+)+$": 64}),
        ("alpha_pattern", {"q_proj": "4"}),
        ("exclude_modules", "(a+)+$"),
        ("exclude_modules", "a.*b"),
        ("exclude_modules", ["q_proj"]),
        ("exclude_modules", r"model\.layers\.0\.mixer|(a+)+$"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(RecordError, match=rf"^{tmp_path / CONFIG}: {key}: expected "):
        read_config(make_adapter(tmp_path, **{key: value}))


def test_plain_lora_of_another_peft_is_read_and_what_only_it_knows_is_off(tmp_path: Path) -> None:
    idle = {"a_key_of_another_peft": None, "peft_version": "0.99", "base_model_name_or_path": "m", "use_other": False}
    config = read_config(make_adapter(tmp_path, use_rslora=True, lora_alpha=3.5, **idle))
    assert (config.r, config.lora_alpha, config.use_rslora, config.lora_dropout) == (2, 3.5, True, 0.0)
    assert config.target_modules == {"q_proj"}


def test_what_is_written_for_experts_and_for_modules_left_out_is_read(tmp_path: Path) -> None:
    fused = {r".*\.gate_up_proj": 2}
    left_out = r"model\.layers\.0\.mixer\.out_proj|model\.layers\.1\.mixer\.out_proj"
    fields = {"target_parameters": ["experts.gate_up_proj"], "rank_pattern": fused, "alpha_pattern": fused}
    config = read_config(make_adapter(tmp_path, exclude_modules=left_out, **fields))
    assert config.target_parameters == ["experts.gate_up_proj"]
    assert (config.rank_pattern, config.alpha_pattern, config.exclude_modules) == (fused, fused, left_out)


def test_a_pattern_of_targets_is_never_tried_for_the_tensors_say_where_they_belong(tmp_path: Path) -> None:
    config = read_config(make_adapter(tmp_path, target_modules=r"(.*.*.*.*.*)*q_proj$"))
    assert config.target_modules == {f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)}


def test_what_we_write_comes_back_with_the_same_config(make_roles: MakeRoles, tmp_path: Path) -> None:
    roles = make_roles("policy")
    roles.save("policy", tmp_path / "first")
    roles.load("again", tmp_path / "first").save("again", tmp_path / "second")
    first, second = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("first", "second"))
    assert second == first


def test_modules_that_were_left_out_are_left_out_again(zoo_roles: MakeRoles, tmp_path: Path) -> None:
    roles = zoo_roles("jamba")
    policy = roles.add("policy", AdapterSection(rank=2), generator=torch.Generator().manual_seed(0))
    policy.save("policy", tmp_path / "first")
    roles.load("again", tmp_path / "first").save("again", tmp_path / "second")
    first, second = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("first", "second"))
    assert "dt_proj" in first["exclude_modules"]
    assert second == first


def test_an_adapter_on_a_pattern_of_ones_own_goes_from_stage_to_stage(make_roles: MakeRoles, tmp_path: Path) -> None:
    from onebase.recipe.sections import AdapterSection

    roles = make_roles("other")
    section = AdapterSection(rank=2, targets=r".*layers\.1\..*(q|v)_proj")
    roles.add("policy", section, generator=torch.Generator().manual_seed(0)).save("policy", tmp_path)
    roles.load("again", tmp_path)
    assert roles.state("again").keys() == roles.state("policy").keys()
    assert len(roles.state("again")) == 4


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def lie(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    header, data = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[FIRST].update(dtype="I64"),
        lambda header: header[FIRST].update(dtype="F64"),
        lambda header: header[FIRST].update(shape=[2, 9]),
        lambda header: header[FIRST].update(shape=[-2, -8]),
        lambda header: header[FIRST].update(shape=[2**40, 2**40]),
        lambda header: header[FIRST].update(shape="2, 8"),
        lambda header: header[FIRST].update(data_offsets=[64, 0]),
        lambda header: header[FIRST].update(data_offsets=[10**9, 10**9 + 64]),
        lambda header: header[FIRST].update(data_offsets=[1.0, 65.0]),
        lambda header: header.update({"more": {"dtype": "F32", "shape": [0], "data_offsets": [7, 7]}}),
        lambda header: header.update({FIRST: None}),
        lambda header: header.pop(FIRST),
    ],
)
def test_a_header_that_lies_is_refused_with_the_files_name_first(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    path = make_adapter(tmp_path) / WEIGHTS
    assert len(read_shapes(path)) == 4
    lie(path, change)
    with pytest.raises(RecordError, match=rf"^{path}: "):
        read_shapes(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x08",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 17) + b'{"a": 1, "a": 2} ',
    ],
)
def test_a_file_that_is_no_safetensors_is_refused_with_its_name_first(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(raw)
    with pytest.raises(RecordError, match=rf"^{path}: "):
        read_tensors(path)


@pytest.mark.parametrize(
    ("number", "dtype"), [(float("nan"), torch.float32), (float("-inf"), torch.float16), (1e300, torch.float64)]
)
def test_numbers_that_are_not_finite_in_fp32_are_refused_by_tensor(
    tmp_path: Path, number: float, dtype: torch.dtype
) -> None:
    path = tmp_path / HEAD
    save_file({"weight": torch.tensor([1.0, number, 2.0], dtype=dtype), "bias": torch.zeros(())}, path)
    with pytest.raises(RecordError, match=rf"^{path}: weight: 1 of 3 numbers are not finite"):
        read_tensors(path)


def test_a_role_with_such_a_head_or_adapter_is_not_loaded(make_roles: MakeRoles, tmp_path: Path) -> None:
    roles = make_roles("reward")
    roles.add_head("reward")
    roles.save("reward", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    sound = (tmp_path / WEIGHTS).read_bytes()
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(RecordError, match=rf"^{tmp_path / WEIGHTS}: .*not finite"):
        roles.load("first", tmp_path)
    (tmp_path / WEIGHTS).write_bytes(sound)
    save_file({"weight": torch.full((64,), float("inf")), "bias": torch.zeros(())}, tmp_path / HEAD)
    with pytest.raises(RecordError, match=rf"^{tmp_path / HEAD}: weight: 64 of 64"):
        roles.load("second", tmp_path)
