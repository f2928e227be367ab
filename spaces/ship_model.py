"""Copies the files of a run that search needs into the embedded Space: `python spaces/ship_model.py demo/model`."""

import sys
from pathlib import Path

from cmfah_hf.space import copy_model

if __name__ == "__main__":
    copy_model(Path(sys.argv[1]), Path(__file__).parent / "cmfah-search" / "model")
