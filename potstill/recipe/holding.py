"""How a teacher is held in memory: where its weights are, and in what they are stored."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import field_validator, model_validator

from potstill.recipe.section import Section

DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,3})?")
Spread = Literal["auto", "balanced", "balanced_low_0", "sequential"]


class Holding(Section):
    """Where a teacher's weights are, and in what they are stored; as left alone, on the run's device in its precision.

    ``device_map`` splits it over devices, by accelerate: as it sees fit, or each module where the mapping has it (cpu,
    disk, cuda:1 or a GPU's number). ``offload: cpu`` keeps its layers in the processor's memory, from where each comes
    to the device when its turn is. ``quantise`` stores the matrices of its layers in fewer bits, and never the output
    embedding: int8 and int8_dynamic are torchao's, of weights alone and of activations too; llm_int8 and nf4 are
    bitsandbytes'. ``dtype`` is what weights are stored in; a run in bfloat16 multiplies in bfloat16 whatever this says.
    """

    device: str | None = None  # the run's where unset
    device_map: Spread | dict[str, str | int] | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: the run's
    quantise: Literal["none", "int8", "int8_dynamic", "llm_int8", "nf4"] = "none"
    offload: Literal["none", "cpu"] = "none"
    offload_folder: str | None = None  # of what a device_map puts on disk

    @property
    def is_plain(self) -> bool:
        """Whether nothing is set, and the teacher is beside the student in the same precision."""
        return all(getattr(self, name) == field.default for name, field in Holding.model_fields.items())

    @property
    def held(self) -> dict[str, object]:
        """These settings by name, for another teacher to be held alike."""
        return {name: getattr(self, name) for name in Holding.model_fields}

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str | None) -> str | None:
        if value is not None and not DEVICE.fullmatch(value):
            raise ValueError(f"is {value!r}, which is no device. Write cpu, mps, cuda or cuda:1")
        return value

    @field_validator("device_map")
    @classmethod
    def _maps_to_devices(cls, value: str | dict[str, str | int] | None) -> str | dict[str, str | int] | None:
        for module, place in value.items() if isinstance(value, dict) else ():
            if not (place == "disk" or DEVICE.fullmatch(str(place)) or (isinstance(place, int) and place >= 0)):
                said = f"has {module or 'the model'} on {place!r}, which is no device"
                raise ValueError(f"{said}. Write cpu, disk, cuda:1 or a GPU's number")
        return value

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.device_map is not None and self.device is not None:
            raise ValueError("device is one, and device_map has several. Keep one of the two")
        if self.offload != "none" and self.device_map is not None:
            raise ValueError("offload moves layers to one device, and device_map spreads them. Keep one of the two")
        if self.offload != "none" and self.quantise != "none":
            raise ValueError(f"offload moves plain weights, and quantise is {self.quantise}. Keep one of the two")
        on_disk = isinstance(self.device_map, dict) and "disk" in self.device_map.values()
        if on_disk and self.quantise != "none":
            raise ValueError(f"device_map has modules on disk, and quantise is {self.quantise}. Keep one of the two")
        if on_disk and self.offload_folder is None:
            raise ValueError("device_map has modules on disk. Set offload_folder, where they are written")
        if self.offload_folder is not None and self.device_map is None:
            raise ValueError("offload_folder is of what a device_map puts on disk. Set device_map, or leave it out")
        return self
