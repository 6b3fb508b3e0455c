"""What a training must remember to go on, and how it is written: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn


class Checkpoints(Protocol):
    """Where states go; the engine's implementation commits them with a receipt."""

    def save(self, epoch: int, files: Mapping[str, bytes]) -> None: ...

    def latest(self) -> tuple[int, Mapping[str, bytes]] | None:
        """The newest state that is whole, or None."""
        ...


@dataclass
class State:
    """Tensors by name (``model/``, ``optimizer/<parameter>/``, ``best/``) and JSON-able facts."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def take(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        made_with: Mapping[str, Any],
        history: list[dict[str, float]],
    ) -> None:
        """Copies what is needed to go on after the last epoch of ``history``; ``made_with`` is kept beside it."""
        self.tensors = {k: v for k, v in self.tensors.items() if k.startswith("best/")}
        self.tensors |= {f"model/{k}": _copy(v) for k, v in model.state_dict().items()}
        for number, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if value is not None:
                    self.tensors[f"optimizer/{number}/{slot}"] = _copy(torch.as_tensor(value))
        self.meta = {**made_with, "history": history, "scaler": scaler.state_dict()}

    def give(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Puts model, optimiser and scaler where they were; ValueError where the model is another one."""
        _load(model, self._under("model/"), "the checkpoint")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        packed: dict[int, dict[str, Tensor]] = {}
        for name, value in self._under("optimizer/").items():
            number, slot = name.split("/")
            # In the parameter's own layout (channels_last), as it was before it was written.
            like = parameters[int(number)]
            fits = value.shape == like.shape
            packed.setdefault(int(number), {})[slot] = torch.empty_like(like).copy_(value) if fits else value
        optimizer.load_state_dict({"state": packed, "param_groups": optimizer.state_dict()["param_groups"]})
        if scaler.is_enabled():
            scaler.load_state_dict(self.meta["scaler"])

    def keep_best(self, model: nn.Module) -> None:
        self.tensors |= {f"best/{k}": _copy(v) for k, v in model.state_dict().items()}

    def restore_best(self, model: nn.Module) -> None:
        _load(model, self._under("best/"), "the best epoch")

    def to_files(self) -> dict[str, bytes]:
        return {
            "state.safetensors": safetensors.torch.save(self.tensors),
            "state.json": json.dumps(self.meta, sort_keys=True).encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> State:
        return cls(safetensors.torch.load(files["state.safetensors"]), json.loads(files["state.json"]))

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _load(model: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    own = model.state_dict()
    wrong = [
        k for k in own.keys() | tensors.keys() if k not in own or k not in tensors or own[k].shape != tensors[k].shape
    ]
    if wrong:
        raise ValueError(f"{what} is of another model (differs at {sorted(wrong)[0]}): train into another folder")
    model.load_state_dict(tensors)
