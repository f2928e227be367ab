"""`accelerate launch train.py CONFIG.yaml [--any_argument value ...]`: `cmfah train` in several processes"""

import sys

from cmfah_hf.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
