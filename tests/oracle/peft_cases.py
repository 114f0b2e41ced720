"""Adapters of PEFT on the tiny models: its settings, and numbers for its tensors from a frozen stream."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.models.presets import preset
from tests.oracle import families

SEED = 5


def lora(**more: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": "all-linear", **more}


IA3 = {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> preset, what peft is told
    **{f"{name} lora": (name, lora()) for name in families.FAMILIES},
    "llama rslora": ("tiny_llama3", lora(use_rslora=True, r=3)),
    "llama dora": ("tiny_llama3", lora(use_dora=True, target_modules=["q_proj", "o_proj", "down_proj"])),
    "llama patterns": ("tiny_llama3", lora(rank_pattern={"q_proj": 4}, alpha_pattern={"layers.1.self_attn.v_proj": 1})),
    "llama one layer": ("tiny_llama3", lora(target_modules=["q_proj", "up_proj"], layers_to_transform=[1])),
    "qwen rslora dora": ("tiny_qwen2.5", lora(use_rslora=True, use_dora=True, lora_alpha=3)),
    "gpt2 rslora dora": ("tiny_gpt2", lora(use_rslora=True, use_dora=True, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)),
    "phi3 dora": ("tiny_phi3", lora(use_dora=True, rank_pattern={"qkv_proj": 4})),
    "pythia dora": ("tiny_pythia", lora(use_dora=True)),
    "llama ia3": ("tiny_llama3", IA3),
    "gpt2 ia3": ("tiny_gpt2", {"peft_type": "IA3", "target_modules": ["mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}),
}
STORED = [
    name
    for name in CASES
    if name
    not in ("tiny_llama2 lora", "tiny_llama3.1 lora", "tiny_smollm2 lora", "tiny_mistral lora", "tiny_gemma2 lora", "tiny_qwen3 lora")
]


def drawn(shapes: dict[str, Any]) -> families.Arrays:
    """Float32 tensors by peft's names, the same on every machine; they change a model's logits well."""
    stream, out = np.random.RandomState(SEED), {}
    for name, shape in sorted(shapes.items()):
        draw = stream.standard_normal(shape)
        if name.endswith("lora_A.weight"):
            draw = draw * shape[1] ** -0.5
        elif name.endswith("lora_B.weight"):
            draw = 0.3 * draw
        else:  # magnitudes and IA3's vectors
            draw = 1 + 0.2 * draw
        out[name] = draw.astype(np.float32)
    return out


def base(name: str) -> Any:
    """The golden model of a tiny preset, as transformers loads it."""
    import transformers

    from tests.interop import made

    with tempfile.TemporaryDirectory() as path:
        made.folder(name, Path(path))
        return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def write(case: str, path: Path) -> families.Arrays:
    """The folder that peft writes of a case, with drawn numbers in it; returns them."""
    import peft
    from safetensors import safe_open
    from safetensors.numpy import save_file

    name, told = CASES[case]
    kind = {"LORA": peft.LoraConfig, "IA3": peft.IA3Config}[told["peft_type"]]
    options = {key: value for key, value in told.items() if key != "peft_type"}
    adapted = peft.get_peft_model(base(name), kind(task_type="CAUSAL_LM", **options))
    adapted.peft_config["default"].base_model_name_or_path = None  # it was a temporary folder
    adapted.save_pretrained(path)
    file = path / "adapter_model.safetensors"
    with safe_open(file, "np") as opened:
        tensors = drawn({key: opened.get_slice(key).get_shape() for key in opened.keys()})  # noqa: SIM118
    save_file(tensors, file, {"format": "pt"})
    return tensors


def reference_logits(name: str, path: Path) -> np.ndarray:
    """What peft makes of a tiny model with the adapters of a folder."""
    import peft

    return families.reference_logits(peft.PeftModel.from_pretrained(base(name), path).eval(), families.random_tokens(preset(name)))
