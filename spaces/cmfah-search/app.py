"""The Space: the page lives in `cmfah_hf.space`; `space.json` says what it shows."""

from pathlib import Path

from cmfah_hf.space import serve_folder

if __name__ == "__main__":
    serve_folder(Path(__file__).parent)
