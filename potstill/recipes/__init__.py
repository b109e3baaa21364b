"""The built-in methods. Adding one means adding a module here that returns a Recipe, and a line below."""

from __future__ import annotations

from collections.abc import Callable

from potstill.recipe import Recipe
from potstill.recipes.abkd import abkd
from potstill.recipes.akl import akl
from potstill.recipes.anli_minillm import anli_minillm
from potstill.recipes.dgkd import dgkd
from potstill.recipes.distillm import distillm
from potstill.recipes.distillm2 import distillm2
from potstill.recipes.entropy_aware import entropy_aware
from potstill.recipes.f_distill import f_distill
from potstill.recipes.feature_kd import feature_kd
from potstill.recipes.gkd import gkd
from potstill.recipes.imitkd import imitkd
from potstill.recipes.kd import kd
from potstill.recipes.minillm import minillm
from potstill.recipes.on_policy import on_policy
from potstill.recipes.penalised_policy_gradient import penalised_policy_gradient
from potstill.recipes.pipeline import pipeline
from potstill.recipes.seqkd import seqkd
from potstill.recipes.sft import sft
from potstill.recipes.skd import skd
from potstill.recipes.step_by_step import step_by_step
from potstill.recipes.taid import taid
from potstill.recipes.teacher_assistant import teacher_assistant

METHODS: dict[str, Callable[..., Recipe]] = {
    "kd": kd,
    "sft": sft,
    "seqkd": seqkd,
    "step_by_step": step_by_step,
    "imitkd": imitkd,
    "gkd": gkd,
    "on_policy": on_policy,
    "minillm": minillm,
    "anli_minillm": anli_minillm,
    "distillm": distillm,
    "distillm2": distillm2,
    "taid": taid,
    "teacher_assistant": teacher_assistant,
    "feature_kd": feature_kd,
    "dgkd": dgkd,
    "pipeline": pipeline,
    "abkd": abkd,
    "akl": akl,
    "f_distill": f_distill,
    "skd": skd,
    "entropy_aware": entropy_aware,
    "penalised_policy_gradient": penalised_policy_gradient,
}
