"""The packages as they lie in the tree. Whatever has a pyproject.toml in packages/ is one, and keeps the contract."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
IMPORTED_AS = {"scikit-learn": "sklearn"}  # where a distribution has another name
COMPILER = shutil.which(os.environ.get("CXX", "c++"))  # the rule of noxfile.py: where there is one, kernels must be


@dataclass(frozen=True)
class Package:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def source(self) -> Path:
        return self.path / "src" / self.module

    @cached_property
    def project(self) -> dict[str, Any]:
        return tomllib.loads((self.path / "pyproject.toml").read_text())["project"]

    @property
    def dependencies(self) -> list[str]:
        """What it cannot do without, by the names that are imported."""
        names = [re.match(r"[\w-]+", requirement) for requirement in self.project["dependencies"]]
        return [IMPORTED_AS.get(name[0], name[0].replace("-", "_")) for name in names if name]

    @property
    def needs_torch(self) -> bool:
        """Its library is then a set of torch's operators, `_C`, otherwise an extension of Python, `_core`."""
        return "torch" in self.dependencies


PACKAGES = [Package(path.parent) for path in sorted(ROOT.glob("packages/*/pyproject.toml"))]
