"""The report of `python -m cws_multidomain`."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cws_multidomain

CPUINFO = Path("/proc/cpuinfo")


def report() -> str:
    command = [sys.executable, "-m", "cws_multidomain"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_report_begins_with_the_version() -> None:
    assert report().split()[:2] == ["cws-multidomain", cws_multidomain.__version__]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors than x86-64 have one vector width")
@pytest.mark.skipif(not CPUINFO.exists(), reason="this system does not list the processor's instructions")
def test_the_kernels_are_those_of_the_widest_vectors_that_the_processor_has() -> None:
    flags = set(re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)[1].split())
    widest = "AVX-512" if {"avx512bw", "avx512vl"} <= flags else "AVX2" if "avx2" in flags else "baseline"
    assert re.search(r"^cpu +C\+\+ \((.*)\)$", report(), re.MULTILINE)[1] == widest
