"""Where data lies."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with the corpus, the word pairs and the pictures' features, or a skip."""
    for parent in Path(__file__).resolve().parents:
        if (folder := parent / "shared/data/embedding").is_dir():
            return folder
    pytest.skip("needs ../shared/data/embedding")
