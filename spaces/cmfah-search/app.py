"""The Space: the page of `cmfah_hf.space` with the settings in `space.json`."""

from pathlib import Path

from cmfah_hf.space import serve_folder

if __name__ == "__main__":
    serve_folder(Path(__file__).parent)
