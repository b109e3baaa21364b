"""The same workspace and commands as the end-to-end tests."""

from tests.e2e.conftest import potstill, teacher_folder, torchrun, workspace

__all__ = ["potstill", "teacher_folder", "torchrun", "workspace"]
