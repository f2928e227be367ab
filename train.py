"""`accelerate launch train.py CONFIG.yaml [--any_argument value ...]`: the command `cmfah train` under accelerate."""

import sys

from cmfah_hf.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
