"""The package index gets the README without links into the repository, which would be dead there."""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
elsewhere = r"\((?!https?:)[^)]*\)"
readme = re.sub(rf"^!\[[^]]*\]{elsewhere}\n+", "", readme, flags=re.MULTILINE)  # figures
setup(long_description=re.sub(rf"\[([^]]*)\]{elsewhere}", r"\1", readme), long_description_content_type="text/markdown")
