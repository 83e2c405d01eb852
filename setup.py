"""What a wheel has: all lies in `jaxvqa`, so that it takes no other name from those who install it.

The checkout's `configs/` is `jaxvqa/config_files/` there, which `jaxvqa.configs` reads, and `tfds_builders/` is
`jaxvqa/tfds_builders/`, by which name the code in the wheel calls it. An editable installation has the checkout as it is.
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

INSIDE = {} if "editable_wheel" in sys.argv else {"configs": "config_files", "tfds_builders": "tfds_builders"}
"""Folder of the checkout -> its name in `jaxvqa`."""


def place(package: str) -> str:
    """The name of a package where it is installed."""
    top, dot, rest = package.partition(".")
    return f"jaxvqa.{INSIDE[top]}{dot}{rest}" if top in INSIDE else package


class BuildPy(build_py):
    """Copies modules, and names the builders in them as they are called in the wheel."""

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Copies one module; returns the file, and whether it was older."""
        file, copied = super().build_module(module, module_file, package)
        text = Path(file).read_text(encoding="utf-8")
        called = re.sub(r"(?<![\w./])tfds_builders(?=\.| import)", place("tfds_builders"), text)
        if called != text:
            Path(file).write_text(called, encoding="utf-8")
        return file, copied


setup(
    packages=[place(name) for name in find_packages(include=["jaxvqa*", "configs*", "tfds_builders*"])],
    package_dir={place(folder): folder for folder in INSIDE},
    package_data={
        "jaxvqa": ["py.typed", "**/*.html"],
        place("tfds_builders"): ["*/README.md", "*/CITATIONS.bib", "*/TAGS.txt", "**/*.html"],
    },
    cmdclass={"build_py": BuildPy},
)
