"""An agent's state as files: each adapter is a folder of PEFT's, which any program with PEFT can load.

The rest, with the optimizer's moments and the checksum of the backbone, is one more file. PEFT itself is not needed
here: its format is a file of tensors by name and a JSON file.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dipole_ray.agents.adapters import checksum, with_backbone
from dipole_ray.agents.state import BACKBONE_CHECKSUM
from dipole_ray.files.checkpoint import BESIDE

AGENT_FILE = "agent"
"""Of a checkpoint, what no adapter holds."""
FOLDER = "adapters"
"""Of a checkpoint, with a folder for each adapter."""
_OWN = re.compile(r"networks\.fields\.network\.(?P<layer>.+\.lora_\w+)\.(?P<adapter>\w+)\.(?P<end>\w+)")
_FILE = re.compile(rf"{FOLDER}/(?P<adapter>\w+)/adapter_model")
_PEFTS = re.compile(r"base_model\.model\.(?P<layer>.+\.lora_\w+)\.(?P<end>\w+)")


def split(
    state: Mapping[str, Tensor], adapter_config: Mapping[str, Any], backbone: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, Tensor] | str]:
    """Return an `Agent.state_dict` by file, as `write_checkpoint` takes it; `adapter_config` is `AdaptedFields`'s.

    A backbone that the state only names lies once beside all checkpoints, under its checksum.
    """
    files: dict[str, dict[str, Tensor] | str] = {}
    agent: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (own := _OWN.fullmatch(name)) is None:
            agent[name] = tensor
            continue
        folder = f"{FOLDER}/{own['adapter']}"
        files[f"{folder}/adapter_config.json"] = json.dumps(adapter_config, indent=1)
        tensors = files.setdefault(f"{folder}/adapter_model", {})
        assert isinstance(tensors, dict)
        tensors[f"base_model.model.{own['layer']}.{own['end']}"] = tensor
    if backbone is not None:
        files[f"{BESIDE}backbone-{checksum(backbone).hex()[:16]}"] = dict(backbone)
    return {AGENT_FILE: agent, **files}


def holds_backbone(state: Mapping[str, Tensor]) -> bool:
    """Whether a state holds the backbone itself: given with it, or still in training."""
    start = "networks.fields."
    named = state.get(f"{start}{BACKBONE_CHECKSUM}")
    return named is not None and (not bool(named.any()) or any(name.startswith(f"{start}backbone.") for name in state))


def without_texts(files: Mapping[str, dict[str, Tensor] | str]) -> dict[str, dict[str, Tensor]]:
    """Return the files that hold tensors."""
    return {name: content for name, content in files.items() if not isinstance(content, str)}


def join(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the `Agent.state_dict` that was split into these files of a checkpoint."""
    state = dict(files[AGENT_FILE])
    for file, tensors in files.items():
        if file.startswith(f"{BESIDE}backbone-"):
            state = with_backbone(state, tensors, "networks.fields.")
        if (place := _FILE.fullmatch(file)) is None:
            continue
        for name, tensor in tensors.items():
            pefts = _PEFTS.fullmatch(name)
            layer, end = (pefts["layer"], pefts["end"]) if pefts else (name, "weight")
            state[f"networks.fields.network.{layer}.{place['adapter']}.{end}"] = tensor
    return state
